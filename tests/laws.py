"""Properties that every part of snello must keep, for any model of the zoo."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from snello.graph import capture
from snello.neurons import is_batchnorm, neuron_count, spread, weighted_layers


def generator(seed: int = 0) -> torch.Generator:
    """A generator of its own: nothing else draws from it."""
    return torch.Generator().manual_seed(seed)


def tensors(output: object) -> Iterator[Tensor]:
    """All tensors of what a model returns, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, list, tuple)):
        for value in output.values() if isinstance(output, dict) else output:
            yield from tensors(value)


def difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest deviation from the batch mean, which constant outputs do
    not hide.
    """
    assert expected.shape == found.shape
    assert expected.dtype == found.dtype
    assert expected.isfinite().all(), "the model itself is wrong"
    scale = float((expected - expected.mean(0, keepdim=True)).abs().max())
    largest = float(expected.abs().max())
    if scale <= 1e-5 * largest:  # the output does not depend on the input
        scale = largest
    return float((expected - found).abs().max()) / (scale or 1.0)


def assert_same_outputs(
    a: nn.Module, b: nn.Module, *inputs: Tensor, tolerance: float = 1e-10
) -> None:
    """Two models in evaluation mode agree to ``tolerance`` times the largest output."""
    with torch.no_grad():
        expected, found = a(*inputs), b(*inputs)
    assert expected.shape == found.shape
    assert expected.isfinite().all()
    difference, scale = float((expected - found).abs().max()), float(expected.abs().max())
    assert difference <= tolerance * scale, (
        f"outputs differ by {difference:.1e}, the largest is {scale:.1e}"
    )


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random biases, BatchNorm statistics and affines, in place: a fresh BatchNorm is the identity
    and hides errors.
    """
    for module in model.modules():
        if is_batchnorm(module):
            for name, low, high in (
                ("running_mean", -1, 1),
                ("running_var", 0.3, 2),
                ("weight", -1.5, 1.5),
            ):
                tensor = getattr(module, name)
                if tensor is not None:
                    tensor.uniform_(low, high, generator=generator)
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.uniform_(-1, 1, generator=generator)
    return model


@torch.no_grad()
def kill(model: nn.Module, name: str, dead: Tensor, *, with_norms: bool) -> None:
    """Zero the incoming weights of the neurons of one layer.

    Args:
        model: changed in place.
        name: the layer.
        dead: boolean, shape ``(neurons,)``.
        with_norms: also zero their bias and the affine of the BatchNorm behind, so that they are
            exactly zero. Without, they are constants that are not zero.
    """
    layer = model.get_submodule(name)
    layer.weight.masked_fill_(spread(layer, dead), 0)
    if not with_norms:
        return
    if layer.bias is not None:
        layer.bias.masked_fill_(dead, 0)
    norm = capture(model).norm_after(name)
    if norm is not None and model.get_submodule(norm).weight is not None:
        model.get_submodule(norm).weight.masked_fill_(dead, 0)
        model.get_submodule(norm).bias.masked_fill_(dead, 0)


def kill_neurons(
    model: nn.Module, share: float, generator: torch.Generator, *, with_norms: bool
) -> dict[str, Tensor]:
    """Kill random neurons of every layer, the head included; see :func:`kill`.

    Returns:
        Layer name -> which neurons were killed, shape ``(neurons,)``.
    """
    dead = {
        name: torch.rand(neuron_count(layer), generator=generator) < share
        for name, layer in weighted_layers(model).items()
    }
    for name, mask in dead.items():
        kill(model, name, mask, with_norms=with_norms)
    return dead


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(p.numel() for p in model.parameters())


def assert_zero_where(model: nn.Module, masks: dict[str, Tensor]) -> None:
    """Every weight that a mask has pruned is exactly zero, and there is at least one."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert any(not mask.all() for mask in masks.values())
    for name, mask in masks.items():
        assert not parameters[name].detach()[~mask].any(), f"{name}: a pruned weight has revived"
