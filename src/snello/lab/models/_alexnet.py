"""AlexNet at the size of CIFAR images."""

from __future__ import annotations

from torch import Tensor, nn

from ._initialise import lecun


class CifarAlexNet(nn.Module):
    """AlexNet with 3×3 kernels, without biases: 23 631 552 parameters for 100 classes.

    Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", 2012, in
    the form common to CIFAR implementations: 3×3 kernels in the first two convolutions, stride 2 in
    the first, three poolings down to 2×2 positions, and two hidden layers of 4096 neurons. The
    pruning papers publish only its size, 94.53 MB in float32, which matches this network without
    biases (94.526 MB). With biases, as it is usually implemented, it has 23 640 996 parameters
    (94.56 MB).

    Args:
        classes: number of outputs.
        in_channels: channels of the image.
        dropout: probability of dropping an input of the hidden layers.
        bias: whether convolutions and linear layers have biases.

    Shape:
        Input `(B, in_channels, H, W)` of at least 16×16 pixels, 32×32 in the papers; output
        `(B, classes)`.
    """

    def __init__(
        self, classes: int = 100, *, in_channels: int = 3, dropout: float = 0.5, bias: bool = False
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, stride=2, padding=1, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1, bias=bias),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1, bias=bias),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.pool = nn.AdaptiveAvgPool2d(2)  # changes nothing at 32×32
        self.flatten = nn.Flatten()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 2 * 2, 4096, bias=bias),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096, bias=bias),
            nn.ReLU(),
            nn.Linear(4096, classes, bias=bias),
        )
        self.apply(lecun)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, shape `(B, classes)`."""
        return self.classifier(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]
