"""Prune a trained network to a share of its size, with fine-tuning in between.

>>> from snello.pruning.channels import Keep
>>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
>>> found = prune(model, torch.randn(8, 16), Keep(macs=0.5), fit=lambda network: None, steps=2)
>>> found.steps[-1].macs <= 0.5, type(found.model) is type(model)
(True, True)
"""

from ._as_plan import as_plan as as_plan
from ._branches import Branch as Branch
from ._branches import find_branches as find_branches
from ._branches import without as without
from ._prune import prune as prune
from ._step import Pruned as Pruned
from ._step import PruningStep as PruningStep

# The names left out of __all__ are internal to snello's own packages.
__all__ = ["Pruned", "PruningStep", "prune"]
