"""Where a network will run: export it, count what it costs, time it.

Counting and timing answer different questions, so both are given, with everything a reader needs to
repeat them: theoretical operations of one sample beside median and spread of the measured time.

>>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), torch.randn(1, 1, 28, 28)
>>> path = export(model, x, "net.onnx")            # verified against PyTorch before the file appears
>>> result = measure(model, x, onnx=path, repeats=20)
>>> result.footprint.parameters, result.footprint.macs
(7850, 7840)
>>> sorted(result.latencies)
['onnxruntime', 'pytorch']

To compare models, time them in one run: :func:`latencies` takes turns between them, so that a noisy
machine is noisy for all of them alike. :func:`compare` does so for models and files of every kind;
:func:`device_kit` makes a folder that does it on another device.

>>> x = torch.randn(64, 1, 28, 28)
>>> export_int8(model, x, "int8.onnx", calibration=[x]).agreement > 0.9    # of real images, not of noise
True
>>> program = export_program(model, x, "net.pt2")                         # or _executorch, _openvino
>>> rows = compare([Subject("net", model, (x,)), Subject("int8", file=Path("int8.onnx"))], repeats=20)

Sources: operations are counted by torch.utils.flop_counter (two per multiply-accumulate); formats
and runtime: https://onnx.ai and https://onnxruntime.ai.
"""

from ._compare import MODEL_FILES as MODEL_FILES
from ._compare import MODEL_RUNTIMES as MODEL_RUNTIMES
from ._compare import Profile as Profile
from ._compare import Subject as Subject
from ._compare import compare as compare
from ._executorch import executorch_runner as executorch_runner
from ._executorch import export_executorch as export_executorch
from ._export import export as export
from ._footprint import Footprint as Footprint
from ._footprint import footprint as footprint
from ._kit import DeviceResult as DeviceResult
from ._kit import DeviceTime as DeviceTime
from ._kit import Kit as Kit
from ._kit import KitModel as KitModel
from ._kit import device_kit as device_kit
from ._kit import read_device_result as read_device_result
from ._latency import Latency as Latency
from ._latency import latencies as latencies
from ._measure import Measurement as Measurement
from ._measure import file_bytes as file_bytes
from ._measure import measure as measure
from ._measure import measure_onnx as measure_onnx
from ._memory import PeakMemory as PeakMemory
from ._memory import peak_memory as peak_memory
from ._memory import peak_memory_onnx as peak_memory_onnx
from ._onnx_footprint import onnx_footprint as onnx_footprint
from ._openvino import export_openvino as export_openvino
from ._openvino import openvino_runner as openvino_runner
from ._program import export_program as export_program
from ._program import program_runner as program_runner
from ._quantise import Quantised as Quantised
from ._quantise import export_int8 as export_int8
from ._quantise import quantise as quantise
from ._records import read_profiles as read_profiles
from ._runners import Runner as Runner
from ._runners import compiled_runner as compiled_runner
from ._runners import onnx_runner as onnx_runner
from ._runners import pytorch_runner as pytorch_runner

__all__ = [
    "MODEL_FILES", "MODEL_RUNTIMES", "DeviceResult", "DeviceTime", "Footprint", "Kit", "KitModel",
    "Latency", "Measurement", "PeakMemory", "Profile", "Quantised", "Runner", "Subject",
    "compare", "compiled_runner", "device_kit", "executorch_runner", "export",
    "export_executorch", "export_int8", "export_openvino", "export_program", "file_bytes",
    "footprint", "latencies", "measure", "measure_onnx", "onnx_footprint", "onnx_runner",
    "openvino_runner", "peak_memory", "peak_memory_onnx", "program_runner", "pytorch_runner",
    "quantise", "read_device_result", "read_profiles",
]  # fmt: skip
