"""The reference networks of the papers, those of torchvision, timm and transformers by name, and
your own by ``"package.module:factory"``.

A model is described by its name and its arguments, never by pickled code: a :class:`ModelSpec` goes
into a recipe or a checkpoint as JSON, :func:`build` makes the network, :func:`load_weights` fills
it. :func:`build` imports and calls whatever the name says; for a name that comes from a file,
:func:`build_untrusted` refuses what is neither known nor named by you.

>>> from snello.models import ModelSpec, available, build
>>> available()[:3], available()[-2:]
(('lenet-300-100', 'lenet-5', 'resnet-20'), ('vgg-16-cifar', 'alexnet-cifar'))
>>> model = build("lenet-5", classes=10)
>>> sum(p.numel() for p in model.parameters())
431080
>>> spec = ModelSpec("resnet-32", {"classes": 10})
>>> ModelSpec.from_dict(spec.to_dict()) == spec
True

Sources: LeNet-300-100, LeCun et al., "Gradient-based learning applied to document recognition",
1998; LeNet-5, the variant of Caffe's MNIST example that the pruning papers count;
ResNet-20/32/44/56/110, He et al., "Deep residual learning for image recognition", 2016,
https://arxiv.org/abs/1512.03385, section 4.2, shortcuts of option A; VGG-16 and AlexNet for CIFAR,
the variants that have the published sizes: see :class:`CifarVGG16` and :class:`CifarAlexNet`.
"""

from snello.models._alexnet import CifarAlexNet as CifarAlexNet
from snello.models._build import ModelSpec as ModelSpec
from snello.models._build import available as available
from snello.models._build import build as build
from snello.models._build import import_factory as import_factory
from snello.models._lenet import LeNet5 as LeNet5
from snello.models._lenet import LeNet300 as LeNet300
from snello.models._resnet import CifarResNet as CifarResNet
from snello.models._untrusted import build_untrusted as build_untrusted
from snello.models._untrusted import imported_factory as imported_factory
from snello.models._untrusted import names_own_code as names_own_code
from snello.models._untrusted import trusted_names as trusted_names
from snello.models._vgg import CifarVGG16 as CifarVGG16
from snello.models._weights import load_weights as load_weights

__all__ = [
    "CifarAlexNet", "CifarResNet", "CifarVGG16", "LeNet5", "LeNet300", "ModelSpec", "available", "build",
    "build_untrusted", "import_factory", "imported_factory", "load_weights", "names_own_code", "trusted_names",
]  # fmt: skip
