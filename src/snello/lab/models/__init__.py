"""The networks of the papers.

Recipes and records refer to a network by its factory, `"snello.lab.models:resnet_32"`, or by the
short name `"resnet-32"`. [`snello.store.build`][] constructs a network from such a name,
[`snello.store.load_weights`][] loads its weights.

>>> from snello.lab.models import model_names, resnet_20
>>> model_names()[:3], model_names()[-2:]
(('lenet-300-100', 'lenet-5', 'resnet-20'), ('vgg-16-cifar', 'alexnet-cifar'))
>>> sum(p.numel() for p in resnet_20(classes=10).parameters())
269722

Sources: LeNet-300-100, LeCun et al., "Gradient-based learning applied to document recognition",
1998; LeNet-5, the variant of Caffe's MNIST example that the pruning papers count;
ResNet-20/32/44/56/110, He et al., "Deep residual learning for image recognition", 2016,
https://arxiv.org/abs/1512.03385, section 4.2, shortcuts of option A; VGG-16 and AlexNet for CIFAR,
the variants that have the published sizes: see [`CifarVGG16`][snello.lab.models.CifarVGG16] and
[`CifarAlexNet`][snello.lab.models.CifarAlexNet].
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from ._alexnet import CifarAlexNet as CifarAlexNet
from ._lenet import LeNet5 as LeNet5
from ._lenet import LeNet300 as LeNet300
from ._resnet import CifarResNet as CifarResNet
from ._vgg import CifarVGG16 as CifarVGG16

lenet_300_100 = LeNet300
lenet_5 = LeNet5
resnet_20 = partial(CifarResNet, 20)
resnet_32 = partial(CifarResNet, 32)
resnet_44 = partial(CifarResNet, 44)
resnet_56 = partial(CifarResNet, 56)
resnet_110 = partial(CifarResNet, 110)
vgg_16_cifar = CifarVGG16
alexnet_cifar = CifarAlexNet

FACTORIES: dict[str, Callable[..., nn.Module]] = {
    "lenet_300_100": lenet_300_100,
    "lenet_5": lenet_5,
    "resnet_20": resnet_20,
    "resnet_32": resnet_32,
    "resnet_44": resnet_44,
    "resnet_56": resnet_56,
    "resnet_110": resnet_110,
    "vgg_16_cifar": vgg_16_cifar,
    "alexnet_cifar": alexnet_cifar,
}
"""Name behind `snello.lab.models:` in a file -> factory."""


def model_names() -> tuple[str, ...]:
    """Short names of the networks."""
    return tuple(name.replace("_", "-") for name in FACTORIES)


# The names left out of __all__ are internal to snello's own packages.
__all__ = ["CifarAlexNet", "CifarResNet", "CifarVGG16", "LeNet5", "LeNet300", "model_names"]
