"""File formats: one class per format, found by the suffix of a file.

>>> path = export(model, x, "net.pt2")
>>> format_of(path).name
'torch-export'
>>> file_runner(path, x)().shape
torch.Size([1, 10])

A format is a subclass of :class:`Format`; :data:`FORMATS` lists those that there are.
"""

from snello.deploy.formats.format import Format as Format
from snello.deploy.formats.onnx import Onnx as Onnx
from snello.deploy.formats.onnx_int8 import Quantised as Quantised
from snello.deploy.formats.onnx_int8 import export_int8 as export_int8
from snello.deploy.formats.onnx_int8 import quantise as quantise
from snello.deploy.formats.registry import FORMATS as FORMATS
from snello.deploy.formats.registry import export as export
from snello.deploy.formats.registry import file_runner as file_runner
from snello.deploy.formats.registry import format_of as format_of

__all__ = [
    "FORMATS",
    "Format",
    "Onnx",
    "Quantised",
    "export",
    "export_int8",
    "file_runner",
    "format_of",
    "quantise",
]
