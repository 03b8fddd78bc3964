"""Where a network will run: export it, count what it costs, time it.

Counting and timing answer different questions, so both are given, with everything a reader needs to repeat
them: theoretical operations of one sample beside median and spread of the measured time.

>>> model, x = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), torch.randn(1, 1, 28, 28)
>>> path = export(model, x, "net.onnx")            # verified against PyTorch before the file appears
>>> result = measure(model, x, onnx=path, repeats=20)
>>> result.footprint.parameters, result.footprint.macs
(7850, 7840)
>>> sorted(result.latencies)
['onnxruntime', 'pytorch']

To compare models, time them in one run: :func:`latencies` takes turns between them, so that a noisy machine
is noisy for all of them alike.

Sources: operations are counted by torch.utils.flop_counter (two per multiply-accumulate); formats and
runtime: https://onnx.ai and https://onnxruntime.ai.
"""

from snello.deploy._export import export as export
from snello.deploy._footprint import Footprint as Footprint
from snello.deploy._footprint import footprint as footprint
from snello.deploy._latency import Latency as Latency
from snello.deploy._latency import latencies as latencies
from snello.deploy._measure import Measurement as Measurement
from snello.deploy._measure import OnnxMeasurement as OnnxMeasurement
from snello.deploy._measure import file_bytes as file_bytes
from snello.deploy._measure import measure as measure
from snello.deploy._measure import measure_onnx as measure_onnx
from snello.deploy._runners import Runner as Runner
from snello.deploy._runners import onnx_runner as onnx_runner
from snello.deploy._runners import pytorch_runner as pytorch_runner

__all__ = [
    "Footprint",
    "Latency",
    "Measurement",
    "OnnxMeasurement",
    "Runner",
    "export",
    "file_bytes",
    "footprint",
    "latencies",
    "measure",
    "measure_onnx",
    "onnx_runner",
    "pytorch_runner",
]
