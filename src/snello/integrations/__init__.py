"""Callbacks that run snello inside other libraries' training loops.

Each callback builds objects of the public API, calls them from the training loop and saves their
state in the library's own checkpoints. [`snello.integrations.lightning`][] needs the extra
`train`, [`snello.integrations.huggingface`][] the extra `huggingface`; neither is imported
before its first use.
"""

from ._scores import scores_of as scores_of

# The names left out of __all__ are internal to snello's own packages.
__all__ = []
