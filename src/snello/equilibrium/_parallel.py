"""The layers behind a cut, trained by several processes."""

from __future__ import annotations

from dataclasses import replace

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from snello.processes import copy_from_first, meet
from snello.wrappers import wrappers_of

from ._prefix import RestingPrefix


def in_parallel(prefix: RestingPrefix, model: nn.Module) -> RestingPrefix:
    """The cut network for several processes, if its model is wrapped in DistributedDataParallel.

    The layers behind the cut are wrapped again, on their own: the model's own wrapper waits for the
    gradients of all parameters and would send zeros for those before the cut. It is used again
    when layers are unfrozen. The statistics before the cut are made those of the first process, so
    that features do not depend on the process that computes them.

    Args:
        prefix: the cut network.
        model: the model as the user trains it, with its wrappers.

    Raises:
        ConfigError: if the other processes do not cut the network in the same step, as with inputs
            whose shape differs from process to process.
    """
    if not any(isinstance(wrapper, DistributedDataParallel) for wrapper in wrappers_of(model)):
        return prefix
    meet("FeatureCache", f"layers before the cut: {', '.join(prefix.modules)}")
    copy_from_first(prefix.front.buffers())
    # Behind the cut there may be layers that are frozen whole, too, and give no gradient.
    return replace(prefix, rest=DistributedDataParallel(prefix.rest, find_unused_parameters=True))
