"""Store: the files people keep, and models as data.

A model is described by the name of a factory and its arguments, never by pickled code: a
:class:`ModelSpec` goes into a recipe, a checkpoint or a model file as JSON, :func:`build` makes the
network, :func:`load_weights` fills it. :func:`build` imports and calls whatever the name says; for
a name that comes from a file, :func:`build_untrusted` refuses what is neither known nor named by
you. A :class:`Record` adds what else is known of a model; :func:`save` and :func:`load` write and
read model files (``.pt``) and read bitstreams (``.snello``).

>>> from snello.store import ModelSpec, build
>>> model = build("lenet-5", classes=10)
>>> sum(p.numel() for p in model.parameters())
431080
>>> spec = ModelSpec("resnet-32", {"classes": 10})
>>> ModelSpec.from_dict(spec.to_dict()) == spec
True
"""

from . import archives as archives
from . import modelfile as modelfile
from ._build import ModelSpec as ModelSpec
from ._build import build as build
from ._build import import_factory as import_factory
from ._untrusted import build_untrusted as build_untrusted
from ._untrusted import imported_factory as imported_factory
from ._untrusted import names_own_code as names_own_code
from ._untrusted import trusted_names as trusted_names
from ._weights import load_weights as load_weights
from .modelfile import Record as Record
from .modelfile import load as load
from .modelfile import save as save

__all__ = [
    "ModelSpec", "Record", "archives", "build", "build_untrusted", "import_factory", "imported_factory", "load",
    "load_weights", "modelfile", "names_own_code", "save", "trusted_names",
]  # fmt: skip
