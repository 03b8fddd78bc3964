"""snello: frugal deep learning, in inference and in training.

For a lean network to ship: train with a sensitivity, prune, simplify, code, export, measure. For
cheaper training: neurons at equilibrium skip their backward pass.

`import snello` needs torch alone, and imports it when a name is first used. Everything else is an
extra, imported when it is used.
"""

import typing as _typing

from ._lazy import lazily as _lazily
from ._version import __version__ as __version__

if _typing.TYPE_CHECKING:
    from .codec import CodecSettings as CodecSettings
    from .codec import compress as compress
    from .codec import decompress as decompress
    from .deploy import export as export
    from .deploy import footprint as footprint
    from .deploy import measure as measure
    from .equilibrium import NEq as NEq
    from .errors import SnelloError as SnelloError
    from .pruning import Pruner as Pruner
    from .pruning.channels import Keep as Keep
    from .search import prune as prune
    from .search import shrink as shrink
    from .sensitivity import Lobster as Lobster
    from .sensitivity import SeReNe as SeReNe
    from .simplification import plan_of as plan_of
    from .simplification import simplify as simplify
    from .store import ModelSpec as ModelSpec
    from .store import Record as Record
    from .store import load as load
    from .store import save as save
else:
    __getattr__, __dir__ = _lazily(
        __name__,
        {
            "codec": ("CodecSettings", "compress", "decompress"),
            "deploy": ("export", "footprint", "measure"),
            "equilibrium": ("NEq",),
            "errors": ("SnelloError",),
            "pruning": ("Pruner",),
            "pruning.channels": ("Keep",),
            "search": ("prune", "shrink"),
            "sensitivity": ("Lobster", "SeReNe"),
            "simplification": ("plan_of", "simplify"),
            "store": ("ModelSpec", "Record", "load", "save"),
        },
    )

__all__ = [
    "CodecSettings", "Keep", "Lobster", "ModelSpec", "NEq", "Pruner", "Record", "SeReNe",
    "SnelloError", "__version__", "compress", "decompress", "export", "footprint", "load",
    "measure", "plan_of", "prune", "save", "shrink", "simplify",
]  # fmt: skip
