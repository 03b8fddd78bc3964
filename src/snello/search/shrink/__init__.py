"""The cheapest network within a bound on the drop of its quality, on a given device.

[`shrink`][snello.search.shrink.shrink] chooses the width of every layer and the precision together,
for a cost that is measured: latency, operations, bytes, memory or your own.

>>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
>>> inputs = torch.randn(256, 16)
>>> labels = model(inputs).argmax(1)
>>> found = shrink(model, inputs[:1], lambda m: (m(inputs).argmax(1) == labels).double(),
...                max_drop=0.2, minimise="macs", calibration=[inputs])
>>> found.chosen.cost < found.dense.cost, found.chosen.limit <= 0.2
(True, True)
"""

from ._candidate import Candidate as Candidate
from ._judge import Judge as Judge
from ._judge import Verdict as Verdict
from ._shrink import Shrunk as Shrunk
from ._shrink import shrink as shrink

__all__ = ["Candidate", "Judge", "Shrunk", "Verdict", "shrink"]
