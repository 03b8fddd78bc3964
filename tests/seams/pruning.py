"""Private names of ``snello.pruning`` that tests use."""

# A network of three epochs is at chance; where it must be pruned all the same, it need not exceed it.
from snello.pruning import _quality as quality

# Random channels reach the combinations of removals that no importance chooses.
from snello.pruning.channels.importances import random as random_channels
