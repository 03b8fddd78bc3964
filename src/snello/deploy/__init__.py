"""Export of networks to other runtimes, and measurement of their size, operations and latency.

The suffix of a file determines its format: [`export`][snello.deploy.formats.export] writes `.onnx`,
`.pt2`, `.xml` and `.pte`, and [`measure`][snello.deploy.measure] and
[`footprint`][snello.deploy.footprint] accept such a file in place of a model. Each format is a
subclass of [`Format`][snello.deploy.formats.Format]; [`FORMATS`][snello.deploy.formats.FORMATS]
lists them.

>>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), torch.randn(1, 1, 28, 28)
>>> path = export(model, x, "net.onnx")            # verified against PyTorch before it appears
>>> result = measure(model, x, onnx=path, repeats=20)
>>> result.footprint.parameters, result.footprint.macs
(7850, 7840)
>>> sorted(result.latencies)
['onnxruntime', 'pytorch']
>>> footprint(path).macs
7840

Results contain theoretical operations (of one sample) and measured time (median and spread), with
the conditions of the measurement.

To compare models, time them in one run: [`latencies`][snello.deploy.latencies] interleaves them, so
that disturbances of the machine affect all of them equally. [`compare`][snello.deploy.compare] does
so for models and exported files; [`device_kit`][snello.deploy.device_kit] writes a folder that does
so on another device.

>>> x = torch.randn(64, 1, 28, 28)
>>> export_int8(model, x, "int8.onnx", calibration=[x]).agreement > 0.9    # of real images, not noise
True
>>> rows = compare([Subject("net", model, (x,)), Subject("int8", file=Path("int8.onnx"))], repeats=20)

Sources: operations are counted by torch.utils.flop_counter (two per multiply-accumulate); formats
and runtime: https://onnx.ai and https://onnxruntime.ai.
"""

from ._footprint import Footprint as Footprint
from ._memory import PeakMemory as PeakMemory
from ._runners import Runner as Runner
from ._runners import compiled_runner as compiled_runner
from ._runners import pytorch_runner as pytorch_runner
from .formats import FORMATS as FORMATS
from .formats import FileModel as FileModel
from .formats import Format as Format
from .formats import Onnx as Onnx
from .formats import Quantised as Quantised
from .formats import export as export
from .formats import export_int8 as export_int8
from .formats import file_runner as file_runner
from .formats import format_of as format_of
from .formats import quantise as quantise
from .kit.make import device_kit as device_kit
from .kit.models import Kit as Kit
from .kit.models import KitModel as KitModel
from .kit.result import DeviceResult as DeviceResult
from .kit.result import DeviceTime as DeviceTime
from .kit.result import read_device_result as read_device_result
from .measure.compare import Profile as Profile
from .measure.compare import Subject as Subject
from .measure.compare import compare as compare
from .measure.compare import model_runtimes as model_runtimes
from .measure.counts import file_bytes as file_bytes
from .measure.counts import footprint as footprint
from .measure.counts import peak_memory as peak_memory
from .measure.latency import Latency as Latency
from .measure.latency import latencies as latencies
from .measure.layers import LayerProfile as LayerProfile
from .measure.layers import profile_layers as profile_layers
from .measure.measure import measure as measure
from .measure.records import read_profiles as read_profiles

__all__ = [
    "FORMATS", "DeviceResult", "DeviceTime", "FileModel", "Footprint", "Format", "Kit", "KitModel", "Latency",
    "LayerProfile", "Onnx", "PeakMemory", "Profile", "Quantised", "Runner", "Subject", "compare", "compiled_runner",
    "device_kit", "export", "export_int8", "file_bytes", "file_runner", "footprint", "format_of",
    "latencies", "measure", "model_runtimes", "peak_memory", "profile_layers",
    "pytorch_runner", "quantise",
    "read_device_result", "read_profiles",
]  # fmt: skip
