"""snello inside other libraries' training loops.

Callbacks are thin: each builds objects of the public API, drives them, and keeps their state in the
library's own checkpoints. :mod:`snello.integrations.lightning` needs the extra ``train``,
:mod:`snello.integrations.huggingface` the extra ``huggingface``; nothing is imported before it is
asked for.
"""

from ._scores import scores_of as scores_of

# Other names are for the packages of snello.
__all__ = []
