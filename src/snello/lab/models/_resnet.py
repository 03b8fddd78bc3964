"""The CIFAR residual networks of He et al., 2016, section 4.2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from snello.errors import ModelError

from ._initialise import kaiming


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A).

    Where the block halves the image and doubles the channels, the shortcut takes every second pixel
    and pads the missing channels with zeros, half of them on either side.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = (channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def shortcut(self, x: Tensor) -> Tensor:
        """The block's input, subsampled and zero-padded to the shape of its output."""
        if self.stride == 1:
            return x
        # Option A as published: a stride of 2, for images of odd size too.
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))

    def forward(self, x: Tensor) -> Tensor:
        """Shape `(B, in_channels, H, W)` to `(B, channels, ceil(H/stride), ceil(W/stride))`."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))  # type: ignore[no-any-return]


class CifarResNet(nn.Module):
    """ResNet of depth 6n+2 for small images: three stages of n blocks with 16, 32 and 64 channels.

    He et al., "Deep residual learning for image recognition", 2016,
    https://arxiv.org/abs/1512.03385. The parameters are named as in the public checkpoints
    (`layer1.0.conv1.weight` …, `linear.bias`).

    Args:
        depth: 6n+2 with n ≥ 1: 20, 32, 44, 56, 110 …
        classes: number of outputs.
        in_channels: channels of the image.

    Shape:
        Input `(B, in_channels, H, W)` of any size, 32×32 in the paper; output `(B, classes)`.

    Raises:
        ModelError: for a depth that is not 6n+2.
    """

    def __init__(self, depth: int = 32, classes: int = 10, *, in_channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ModelError(
                f"a CIFAR ResNet has depth 6n+2 (20, 32, 44, 56, 110 …), got depth={depth}"
            )
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(64, classes)
        self.apply(kaiming)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, shape `(B, classes)`."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))
