"""From tensors to a bitstream of ISO/IEC 15938-17 (NNC), and back.

Quantisation loses precision, once; everything after it is exact: what the decoder gives is known
before a single byte is written. A tensor with two or more dimensions is quantised with the step
size of ``qp``, a vector (a bias, the parameters of a BatchNorm) with the much finer one of
``nonweight_qp``, and the integer levels go through the context-adaptive arithmetic coder DeepCABAC.

>>> tensors = {"fc.weight": torch.randn(10, 84), "fc.bias": torch.zeros(10)}
>>> stream = encode(tensors)                       # the plain NNC stream, readable by any NNC decoder
>>> all(torch.equal(decode(stream)[name], value) for name, value in quantised(tensors).items())
True
>>> data = compress(tensors, record={"model": "fc"})   # the .snello container: any dtype, damage is noticed
>>> decompress(data).record
{'model': 'fc'}

Decoding runs in a child process behind :class:`Limits`: a damaged or hostile file ends in an error.
The codec knows names and arrays, never modules. It needs the package ``nncodec`` (extra ``nnc``);
:func:`read_header` does not.

Sources: ISO/IEC 15938-17, "Compression of neural networks for multimedia content description and
analysis"; Becking et al., "NNCodec: An Open Source Software Implementation of the Neural Network
Coding ISO/IEC Standard", ICML Workshop Neural Compression 2023,
https://openreview.net/forum?id=5VgMDKUgX0.
"""

from snello.codec._container import Decompressed as Decompressed
from snello.codec._container import compress as compress
from snello.codec._container import decompress as decompress
from snello.codec._container import is_container as is_container
from snello.codec._container import read_header as read_header
from snello.codec._container import stream_of as stream_of
from snello.codec._limits import Limits as Limits
from snello.codec._manifest import Header as Header
from snello.codec._manifest import TensorEntry as TensorEntry
from snello.codec._settings import QP_MAX as QP_MAX
from snello.codec._settings import QP_MIN as QP_MIN
from snello.codec._settings import CodecSettings as CodecSettings
from snello.codec._settings import step_size as step_size
from snello.codec._stream import decode as decode
from snello.codec._stream import encode as encode
from snello.codec._stream import quantised as quantised
from snello.codec._stream import step_sizes as step_sizes

__all__ = [
    "QP_MAX",
    "QP_MIN",
    "CodecSettings",
    "Decompressed",
    "Header",
    "Limits",
    "TensorEntry",
    "compress",
    "decode",
    "decompress",
    "encode",
    "is_container",
    "quantised",
    "read_header",
    "step_size",
    "step_sizes",
    "stream_of",
]
