"""Removal of whole channels from a trained network, with all slices that read and write them.

The coupled channels of a residual stream, the heads of an attention or the hidden units of a layer
are removed together, so that the result is a narrower network of the same class, without index
operations or masks.

    from snello.pruning.channels import Keep, group_taylor, plan_channels

    plan = plan_channels(model, images, Keep(macs=0.5), importance=group_taylor(batches))
    print(plan)                       # widths before and after, what is pinned and why
    lean = plan.cut(model)            # then fine-tune it

[`snello.prune`][snello.search.prune.prune] does this in several steps, with fine-tuning in between.

Sources: Fang et al., "DepGraph: towards any structural pruning", CVPR 2023 (groups and their
normalised importance); Molchanov et al., "Importance estimation for neural network pruning", CVPR
2019 (first-order Taylor); Liu et al., "Group Fisher pruning for practical network compression",
ICML 2021 (Fisher); Liu et al., "Learning efficient convolutional networks through network
slimming", ICCV 2017 (BatchNorm scale).
"""

from ._plan import ChannelPlan as ChannelPlan
from ._plan import Keep as Keep
from ._plan import checked_scores as checked_scores
from ._plan import least_width as least_width
from ._plan import plan_channels as plan_channels
from ._size import Size as Size
from ._size import SizeModel as SizeModel
from ._size import measured_size as measured_size
from .importances import CHANNEL_IMPORTANCES as CHANNEL_IMPORTANCES
from .importances import ChannelImportance as ChannelImportance
from .importances import activation as activation
from .importances import group_fisher as group_fisher
from .importances import group_taylor as group_taylor
from .importances import importance_of as importance_of
from .importances import magnitude as magnitude
from .importances import measured_scores as measured_scores
from .importances import neuron_scores as neuron_scores
from .importances import norm_scale as norm_scale

# The names left out of __all__ are internal to snello's own packages.
__all__ = [
    "CHANNEL_IMPORTANCES",
    "ChannelImportance",
    "ChannelPlan",
    "Keep",
    "Size",
    "activation",
    "group_fisher",
    "group_taylor",
    "magnitude",
    "measured_size",
    "neuron_scores",
    "norm_scale",
    "plan_channels",
]  # fmt: skip
