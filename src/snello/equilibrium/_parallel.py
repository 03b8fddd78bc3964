"""The layers behind a cut, trained by several processes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

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
    """
    if not any(isinstance(wrapper, DistributedDataParallel) for wrapper in wrappers_of(model)):
        return prefix
    with torch.no_grad():
        for buffer in prefix.front.buffers():
            distributed.broadcast(buffer, src=0)
    # Behind the cut there may be layers that are frozen whole, too, and give no gradient.
    return replace(prefix, rest=DistributedDataParallel(prefix.rest, find_unused_parameters=True))
