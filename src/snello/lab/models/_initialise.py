"""Initial weights of the reference networks."""

from __future__ import annotations

from torch import nn


def kaiming(module: nn.Module) -> None:
    """Initialise as in He et al., "Delving deep into rectifiers", 2015, as published."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def lecun(module: nn.Module) -> None:
    """LeCun et al., "Efficient BackProp", 1998: variance 1/fan-in, biases zero.

    Meant for a network with dropout and without normalisation. With He's variance, 2/fan-in, SGD at
    a learning rate of 0.01 diverges in its first steps and leaves every ReLU dead; with PyTorch's
    default, 1/(3 fan-in), the loss does not move for hundreds of steps.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
