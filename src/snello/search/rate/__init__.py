"""Rate search: the smallest bitstream whose decoded model stays within a bound.

[`search_rate`][snello.search.rate.search_rate] evaluates decoded models to find how coarsely the
weights may be quantised. First, one quantisation parameter (QP) for all weights is found by
bisection. Then every tensor gets its own QP, chosen such that one more byte would reduce the output
error equally in every tensor (reverse water-filling): layers with little influence on the output
are quantised coarsely.

>>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
>>> inputs = torch.randn(256, 16)
>>> target = model(inputs).detach()
>>> found = search_rate(model, lambda m: float((m(inputs) - target).square().mean()),
...                     max_drop=1e-3, calibration=inputs)
>>> found.after <= found.bound and found.bytes == len(encode(found.model.state_dict(), found.settings))
True
>>> data = snello.compress(found.model.state_dict(), found.settings)        # what to ship

The returned setting has been decoded and evaluated, not estimated, and all trials are listed. Use
validation data for the search and report results on test data.

Sources: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE
Trans. ASSP, 1988; Choi et al., "Towards the limit of network quantization", ICLR 2017,
https://arxiv.org/abs/1612.01543; Nagel et al., "Data-free quantization through weight equalization
and bias correction", ICCV 2019, https://arxiv.org/abs/1906.04721.
"""

from ._probe import distance as distance
from ._probe import float_tensors as float_tensors
from ._search import search_rate as search_rate
from ._trial import RateSearch as RateSearch
from ._trial import RateTrial as RateTrial
from ._trial import coded_tensors as coded_tensors
from ._trial import with_tensors as with_tensors

# The names left out of __all__ are internal to snello's own packages.
__all__ = ["RateSearch", "search_rate"]
