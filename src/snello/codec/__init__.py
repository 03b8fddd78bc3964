"""Tensors coded as bitstreams of ISO/IEC 15938-17 (NNC).

Only quantisation loses precision; everything after it is exact, so that the decoded values are
known before coding. A tensor with two or more dimensions is quantised with the step size of `qp`,
a vector (a bias, the parameters of a BatchNorm) with the much finer one of `nonweight_qp`, and
the integer levels are coded by the context-adaptive arithmetic coder DeepCABAC.

>>> tensors = {"fc.weight": torch.randn(10, 84), "fc.bias": torch.zeros(10)}
>>> stream = encode(tensors)                       # the plain NNC stream, readable by any NNC decoder
>>> all(torch.equal(decode(stream)[name], value) for name, value in quantised(tensors).items())
True
>>> data = compress(tensors, record={"model": "fc"})   # the .snello container: any dtype, damage is noticed
>>> decompress(data).record
{'model': 'fc'}

Decoding runs in a child process with [`Limits`][snello.codec.Limits]: a damaged or hostile file
raises an error. The codec knows names and arrays, never modules. It needs the package `nncodec`
(`snello install-codec`, or the extra `nnc`); [`read_header`][snello.codec.read_header] does not.

Sources: ISO/IEC 15938-17, "Compression of neural networks for multimedia content description and
analysis"; Becking et al., "NNCodec: An Open Source Software Implementation of the Neural Network
Coding ISO/IEC Standard", ICML Workshop Neural Compression 2023,
https://openreview.net/forum?id=5VgMDKUgX0.
"""

from ._container import Decompressed as Decompressed
from ._container import compress as compress
from ._container import decompress as decompress
from ._container import is_container as is_container
from ._container import read_header as read_header
from ._container import stream_of as stream_of
from ._install import install as install
from ._install import require_nncodec as require_nncodec
from ._limits import Limits as Limits
from ._manifest import Header as Header
from ._manifest import TensorEntry as TensorEntry
from ._settings import QP_MAX as QP_MAX
from ._settings import QP_MIN as QP_MIN
from ._settings import CodecSettings as CodecSettings
from ._settings import step_size as step_size
from ._stream import decode as decode
from ._stream import encode as encode
from ._stream import quantised as quantised
from ._stream import step_sizes as step_sizes

# Other names are for the packages of snello.
__all__ = [
    "CodecSettings", "Decompressed", "Header", "Limits", "TensorEntry", "compress", "decode",
    "decompress", "encode", "install", "quantised", "read_header",
]  # fmt: skip
