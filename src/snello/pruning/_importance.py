"""Importances: scores of the weights or neurons of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, DataError, nearest
from snello.graph import (
    Inputs,
    Labelled,
    Loss,
    capture,
    evaluation_mode,
    labelled,
    loss_of,
    repeatable,
    requiring_gradients,
)
from snello.neurons import check_granularity, iter_rows, plain_layers, rows, weighted_layers
from snello.processes import sum_over_processes

Granularity = Literal["weight", "neuron", "channel"]
Chosen = TypeVar("Chosen")
Importance = Callable[[nn.Module, Granularity], dict[str, Tensor]]
"""(model, granularity) -> layer name -> scores, of the weight's shape or of shape `(neurons,)`.
Units with low scores are pruned first. Layers without scores are left alone."""


def l1(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
    """Magnitude: `|w|` per weight, the mean of it per neuron."""
    if granularity == "weight":
        return {name: _weight(m).abs() for name, m in weighted_layers(model).items()}
    return {
        name: grouped.detach().abs().mean(1)
        for name, _, grouped in iter_rows(weighted_layers(model))
    }


def l2(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
    """Magnitude: `|w|` per weight, the root mean square of a neuron's weights."""
    if granularity == "weight":
        return l1(model, granularity)
    grouped = iter_rows(weighted_layers(model))
    return {name: row.detach().abs().square().mean(1).sqrt() for name, _, row in grouped}


def han(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
    """Magnitude divided by the layer's standard deviation: a threshold is Han et al.'s "quality".

    A weight is pruned if `|w| < quality * std(w)`, with the standard deviation of the layer's
    nonzero weights: one threshold on these scores is another threshold on `|w|` in each layer.

    Source: Han et al., "Learning both weights and connections for efficient neural networks",
    NeurIPS 2015, section 3.
    """
    scores = l1(model, granularity)
    for name, module in weighted_layers(model).items():
        live = _weight(module)[_weight(module) != 0]
        spread = live.std() if len(live) > 1 else live.abs().sum()
        # If all weights of a layer are equal, the deviation is 0 and the scores get very large.
        scores[name] = scores[name] / spread.clamp_min(torch.finfo(spread.dtype).tiny)
    return scores


def bn_scale(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
    """`|gamma|` of the BatchNorm that reads a neuron alone; layers without one are left alone.

    Source: Liu et al., "Learning efficient convolutional networks through network slimming", ICCV
        2017.

    Raises:
        ConfigError: for single weights, and for a network without such a BatchNorm.
        ModelError: for a model that torch.fx cannot trace.
    """
    if granularity != "neuron":
        raise ConfigError(
            "'bn-scale' says what neurons are worth: use it with granularity='neuron'"
        )
    graph = capture(model)
    norms = {name: graph.norm_after(name) for name in weighted_layers(model)}
    scales = {n: model.get_submodule(norm).weight for n, norm in norms.items() if norm is not None}
    found = {
        name: scale.detach().abs() for name, scale in scales.items() if isinstance(scale, Tensor)
    }
    if not found:
        raise ConfigError(
            f"'bn-scale' needs a BatchNorm behind a layer; {type(model).__name__} has none"
        )
    return found


def random(seed: int = 0) -> Importance:
    """Uniformly random scores, the baseline that every importance must beat.

    Args:
        seed: the same seed draws the same scores, also after units were pruned.
    """

    def scores(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        like = l1(model, granularity)
        return {
            n: torch.rand(s.shape, generator=generator, dtype=s.dtype).to(s.device)
            for n, s in like.items()
        }

    return scores


def taylor(batches: Iterable[Labelled], loss: Loss | None = None) -> Importance:
    """First-order change of the loss: `|w dL/dw|` per weight, `|sum w dL/dw|` per neuron.

    The returned importance raises DataError if there is no batch.

    Args:
        batches: calibration data, pairs of inputs and targets, iterated once per call with the
            model in evaluation mode. The magnitudes are averaged over batches.
        loss: function of outputs and targets; default: cross-entropy.

    Source: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017, eq. 7-8.
    """
    batches = repeatable(batches)

    def scores(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
        check_granularity(granularity)
        layers, left = plain_layers(weighted_layers(model))
        scores = l1(model, granularity)
        sums = {name: torch.zeros_like(score) for name, score in scores.items() if name not in left}
        device = next(iter(sums.values())).device if sums else torch.device("cpu")
        count = 0
        for inputs, targets in labelled(batches, device):
            _add_taylor(model, layers, sums, inputs, targets, loss, granularity)
            count += 1
        total = float(sum_over_processes(torch.tensor(float(count), device=device)))
        if not total:
            raise DataError("there is no batch to calibrate the scores on")
        return {name: sum_over_processes(value) / total for name, value in sums.items()}

    # The scores of all layers are changes of the same loss, and need no normalisation per layer.
    scores.normalise = None  # type: ignore[attr-defined]
    return scores


def _add_taylor(
    model: nn.Module,
    layers: dict[str, nn.Module],
    sums: dict[str, Tensor],
    inputs: Inputs,
    targets: Any,
    loss: Loss | None,
    granularity: Granularity,
) -> None:
    weights: list[Tensor] = [m.weight for m in layers.values()]  # type: ignore[misc]
    with evaluation_mode(model), requiring_gradients(weights):
        value = loss_of(inputs.call(model), targets, loss)
        gradients = torch.autograd.grad(value, weights, allow_unused=True)
    for (name, module), weight, gradient in zip(layers.items(), weights, gradients, strict=True):
        if gradient is not None:
            product = weight.detach() * gradient
            sums[name] += (
                product if granularity == "weight" else rows(module, product).sum(1)
            ).abs()


IMPORTANCES: dict[str, Importance] = {
    "l1": l1, "l2": l2, "han": han, "bn-scale": bn_scale, "random": random(),
}  # fmt: skip


CALIBRATED: dict[str, Callable[[Iterable[Labelled]], Importance]] = {"taylor": taylor}
"""Name -> function from calibration batches to an importance."""


def importance_of(given: str | Importance) -> Importance:
    """The importance of a name; a function is returned unchanged.

    Raises:
        ConfigError: for an unknown name, with those that exist.
    """
    return chosen_importance(given, IMPORTANCES)


def chosen_importance(given: str | Chosen, known: Mapping[str, Chosen]) -> Chosen:
    """The function of a name in a table; a function is returned unchanged.

    Raises:
        ConfigError: for an unknown name, with those that exist.
    """
    if not isinstance(given, str) and callable(given):
        return given
    if not isinstance(given, str) or given not in known:
        raise ConfigError(
            f"importance is a function or one of {', '.join(known)}, not {given!r}"
            f"{nearest(given, known) if isinstance(given, str) else ''}"
        )
    return known[given]


def _weight(module: nn.Module) -> Tensor:
    return module.weight.detach()  # type: ignore[union-attr, operator, return-value]
