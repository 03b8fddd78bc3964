"""Initial weights of the reference networks."""

from __future__ import annotations

from torch import nn


def kaiming(module: nn.Module) -> None:
    """Initialise as in He et al., "Delving deep into rectifiers", 2015, as published."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def lecun(module: nn.Module) -> None:
    """LeCun et al., "Efficient BackProp", 1998: variance 1/fan-in, biases zero.

    For a network with dropout and without normalisation: with He's twice as much, SGD at a rate of
    0.01 blows up in its first steps and leaves every rectifier dead; with PyTorch's sixth of that,
    hundreds of steps pass in which nothing is learnt.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
