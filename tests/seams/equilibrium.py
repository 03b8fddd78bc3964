"""Private names of ``snello.equilibrium`` that tests use."""

# The sparse backward pass is compared with the dense one for each of its two ways; NEq itself
# chooses the way by a timing.
from snello.equilibrium._dispatch import Decision as Decision
from snello.equilibrium._dispatch import Dispatch as Dispatch
from snello.equilibrium._dispatch import Work as Work
from snello.equilibrium._dispatch import pays as pays
from snello.equilibrium._dispatch import rule as rule
from snello.equilibrium._sparse import attach as attach_sparse
from snello.equilibrium._sparse import detach as detach

# The paper's FLOPs are compared with a count by hand.
from snello.equilibrium._flops import forward_use as forward_use
from snello.equilibrium._flops import paper_flops as paper_flops

# Freezing has laws of its own (compiled models, hooks, copies), without a selection.
from snello.equilibrium._freezer import Freezer as Freezer

# The layers that may be frozen are a rule, stated for networks that are never trained.
from snello.equilibrium._layers import monitored_layers as monitored_layers

# Similarities are compared with the formulas of the paper, neuron by neuron.
from snello.equilibrium._probe import Probe as Probe
from snello.equilibrium._probe import by_channel as by_channel

# Times are replaced by monkeypatching, so that what follows from them is exact.
from snello.equilibrium import _cache as cache_module
from snello.equilibrium import _worth as worth_module
