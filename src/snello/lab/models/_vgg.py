"""VGG-16 at the size of CIFAR images."""

from __future__ import annotations

from torch import Tensor, nn

from ._initialise import kaiming

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of the convolutions between two poolings (configuration D of the VGG paper)."""


class CifarVGG16(nn.Module):
    """VGG-16 with BatchNorm and two linear layers: 14 991 946 parameters, 59.97 MB.

    The 13 convolutions of Simonyan and Zisserman, "Very deep convolutional networks for large-scale
    image recognition", 2015, https://arxiv.org/abs/1409.1556, configuration D, and the head of
    Zagoruyko, "92.45% on CIFAR-10 in Torch", 2015, http://torch.ch/blog/2015/07/30/cifar.html: one
    hidden layer of 512, normalised too. Of the variants in use, only this one has the 59.97 MB that
    the pruning papers publish.

    Args:
        classes: number of outputs.
        in_channels: channels of the image.
        dropout: probability of dropping an input of the linear layers.

    Shape:
        Input `(B, in_channels, H, W)` of at least 32×32 pixels, 32×32 in the papers; output
        `(B, classes)`.
    """

    def __init__(self, classes: int = 10, *, in_channels: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for stage in STAGES:
            for channels in stage:
                convolution = nn.Conv2d(in_channels, channels, 3, padding=1)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
                in_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)  # changes nothing at 32×32
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.BatchNorm1d(512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, classes),
        )
        self.apply(kaiming)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, shape `(B, classes)`."""
        return self.classifier(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]
