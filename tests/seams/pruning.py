"""Private names of ``snello.pruning`` that tests use."""

# A network of three epochs is at chance; where it must be pruned all the same, it need not exceed it.
from snello.pruning import _quality as quality
