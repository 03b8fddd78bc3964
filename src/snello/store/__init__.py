"""Model files and bitstreams, and descriptions of models as data.

A model is described by the name of a factory and its arguments, never by pickled code. A
[`ModelSpec`][snello.store.ModelSpec] is stored as JSON in a recipe, a checkpoint or a model file;
[`build`][snello.store.build] constructs the network and [`load_weights`][snello.store.load_weights]
loads its weights. [`build`][snello.store.build] imports and calls any factory that is named; use
[`build_untrusted`][snello.store.build_untrusted] for a name read from a file, which refuses
factories that are neither known nor trusted by the caller. A [`Record`][snello.store.Record] adds
the input shape and the plan that made a model lean. `save` and `load` write and read model files
(`.pt`) and bitstreams (`.snello`), and [`inspect`][snello.store.inspect] describes these and
exported files. Each kind of file is one class.

>>> from snello.store import ModelSpec, build
>>> model = build("lenet-5", classes=10)
>>> sum(p.numel() for p in model.parameters())
431080
>>> spec = ModelSpec("resnet-32", {"classes": 10})
>>> ModelSpec.from_dict(spec.to_dict()) == spec
True
"""

from typing import TYPE_CHECKING

from snello._lazy import lazily as _lazily

if TYPE_CHECKING:
    from . import archives as archives
    from ._build import build as build
    from ._build import import_factory as import_factory
    from ._check import check_loadable as check_loadable
    from ._images import ImageInput as ImageInput
    from ._library_images import images_of as images_of
    from ._spec import ModelSpec as ModelSpec
    from ._untrusted import build_untrusted as build_untrusted
    from ._untrusted import trusted_names as trusted_names
    from ._weights import load_weights as load_weights
    from .container import Container as Container
    from .files import MODEL_FILES as MODEL_FILES
    from .files import inspect as inspect
    from .files import load as load
    from .files import read as read
    from .files import save as save
    from .record import InputSpec as InputSpec
    from .record import Record as Record
    from .record import from_dict as from_dict
    from .record import summary as summary
    from .record import to_dict as to_dict
else:
    __getattr__, __dir__ = _lazily(
        __name__,
        {
            "_build": ("build", "import_factory"),
            "_check": ("check_loadable",),
            "_images": ("ImageInput",),
            "_library_images": ("images_of",),
            "_spec": ("ModelSpec",),
            "_untrusted": ("build_untrusted", "trusted_names"),
            "_weights": ("load_weights",),
            "container": ("Container",),
            "files": ("MODEL_FILES", "inspect", "load", "read", "save"),
            "record": ("InputSpec", "Record", "from_dict", "summary", "to_dict"),
        },
    )  # fmt: skip

__all__ = [
    "MODEL_FILES", "Container", "ImageInput", "InputSpec", "ModelSpec", "Record", "archives", "build",
    "build_untrusted", "check_loadable", "from_dict", "images_of", "import_factory", "inspect", "load",
    "load_weights", "read", "save", "summary", "to_dict", "trusted_names",
]  # fmt: skip
