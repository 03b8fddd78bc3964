"""The operations of a network, their time on a device, and the latency that follows from them.

[`operations_of`][snello.deploy.operations.operations_of] records the convolutions and matrix
products of a model with their shapes. Each distinct one is timed alone, as a small ONNX model, on
this machine or on another ([`DeviceProfile`][snello.deploy.operations.DeviceProfile]), and a
network's latency is predicted as

$$t = a + s \\sum_i t_i$$

with the offset a and the slope s fitted on a few runs of whole networks
([`fit_latency`][snello.deploy.operations.fit_latency]). The fit covers what the table does not:
activations, additions, copies between layouts.

>>> model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(1, 64)
>>> for operation in operations_of(model, x):
...     print(operation.key)
linear 1x64x32 float32
linear 1x32x4 float32

Sources: Yang et al., "NetAdapt", ECCV 2018 (a table of measured layers); Shen et al., "Structural
pruning via latency-saliency knapsack", NeurIPS 2022 (its steps as the widths to choose from).
"""

from .fit import LatencyFit as LatencyFit
from .fit import fit_latency as fit_latency
from .nodes import operation_model as operation_model
from .operation import Operation as Operation
from .profile import DeviceProfile as DeviceProfile
from .profile import ProfiledModel as ProfiledModel
from .profile import read_profile as read_profile
from .profile import this_device as this_device
from .record import operations_of as operations_of
from .table import OperationTable as OperationTable

__all__ = [
    "DeviceProfile", "LatencyFit", "Operation", "OperationTable", "ProfiledModel", "fit_latency",
    "operation_model", "operations_of", "read_profile", "this_device",
]  # fmt: skip
