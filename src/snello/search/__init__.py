"""Search for the cheapest settings within a measured bound on loss or accuracy.

[`search_rate`][snello.search.rate.search_rate] finds the smallest bitstream, with a quantisation
parameter for each tensor. [`prune`][snello.search.prune.prune] removes channels of a trained
network, step by step. [`shrink`][snello.search.shrink.shrink] chooses widths and precision
together, for latency, operations, bytes or memory.
[`snello.search.tune`][snello.search.tune.search], which needs the extra `tune`, searches
hyper-parameters with Optuna.
"""

from .prune import Pruned as Pruned
from .prune import PruningStep as PruningStep
from .prune import prune as prune
from .rate import RateSearch as RateSearch
from .rate import search_rate as search_rate
from .shrink import Shrunk as Shrunk
from .shrink import shrink as shrink

__all__ = ["Pruned", "PruningStep", "RateSearch", "Shrunk", "prune", "search_rate", "shrink"]
