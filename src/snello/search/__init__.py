"""Search for the cheapest settings that keep a measured bound on the loss.

:func:`search_rate` finds the smallest bitstream, with a quantisation parameter for each tensor.
"""

from .rate import RateSearch as RateSearch
from .rate import search_rate as search_rate

__all__ = ["RateSearch", "search_rate"]
