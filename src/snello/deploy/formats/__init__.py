"""File formats: one class per format, found by the suffix of a file.

>>> path = export(model, x, "net.pt2")
>>> format_of(path).name
'torch-export'
>>> file_runner(path, x)().shape
torch.Size([1, 10])

A format is a subclass of [`Format`][snello.deploy.formats.Format];
[`FORMATS`][snello.deploy.formats.FORMATS] lists the available ones.
"""

from .format import Format as Format
from .module import FileModel as FileModel
from .onnx import Onnx as Onnx
from .onnx_int8 import Quantised as Quantised
from .onnx_int8 import export_int8 as export_int8
from .onnx_int8 import quantise as quantise
from .registry import FORMATS as FORMATS
from .registry import export as export
from .registry import file_runner as file_runner
from .registry import format_of as format_of

__all__ = [
    "FORMATS", "FileModel", "Format", "Onnx", "Quantised", "export", "export_int8", "file_runner",
    "format_of", "quantise",
]  # fmt: skip
