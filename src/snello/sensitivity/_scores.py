"""Sensitivities of a trained network on calibration data, as scores for one-shot pruning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from snello.errors import DataError
from snello.graph import (
    Labelled,
    Loss,
    evaluation_mode,
    labelled,
    loss_of,
    repeatable,
    requiring_gradients,
    scores_of,
)
from snello.neurons import check_granularity, plain_layers, rows, spread, weighted_layers
from snello.processes import sum_over_processes

from ._outputs import wide
from ._serene import Estimate, SeReNe

Granularity = Literal["weight", "neuron"]
Scores = Callable[[nn.Module, Granularity], dict[str, Tensor]]
"""(model, granularity) -> layer name -> scores, of the weight's shape or of shape
`(neurons,)`."""
Batches = Iterable[Labelled]


def lobster_scores(batches: Batches, loss: Loss | None = None) -> Scores:
    r"""LOBSTER's sensitivity $|\partial L / \partial w|$ as scores of a trained network.

    Args:
        batches: calibration data, pairs of inputs and targets; iterated once per call.
        loss: function of outputs and targets; default: cross-entropy.

    Returns:
        A function of model and granularity for `Pruner(importance=...)`. It runs the model in
        evaluation mode and does not change `.grad`. The score of a weight is the mean magnitude
        over batches, that of a neuron the mean over its weights. It raises DataError if there is no
        batch.
    """
    batches = repeatable(batches)

    def scores(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
        check_granularity(granularity)
        layers, _ = plain_layers(weighted_layers(model))
        weights: list[Tensor] = [m.weight for m in layers.values()]  # type: ignore[misc]
        if not weights:
            return {}
        # Half precision cannot count to 300.
        sums = [torch.zeros_like(w, dtype=wide(w)) for w in weights]
        count = sums[0].new_zeros(1)
        with evaluation_mode(model), requiring_gradients(weights):
            for inputs, targets in labelled(batches, count.device):
                value = loss_of(inputs.call(model), targets, loss)
                gradients = torch.autograd.grad(value, weights, allow_unused=True)
                count += 1
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient.abs()
        means = [sum_over_processes(total) for total in sums]
        batches_seen = float(sum_over_processes(count))
        if not batches_seen:
            raise DataError("there is no batch to calibrate the scores on")
        found = {name: mean / batches_seen for name, mean in zip(layers, means, strict=True)}
        if granularity == "weight":
            return found
        return {name: rows(layers[name], score).mean(1) for name, score in found.items()}

    return scores


def serene_scores(
    batches: Batches, *, estimate: Estimate = "sampled", class_dim: int = 1, seed: int = 0
) -> Scores:
    r"""SeReNe's sensitivity of the outputs to each neuron, as scores for pruning a trained network.

    Args:
        batches: calibration data, pairs of inputs and targets (the targets are not used).
        estimate: one of SeReNe's estimates.
        class_dim: the dimension of the classes in the outputs.
        seed: seed of the classes drawn.

    Returns:
        A function of model and granularity for `Pruner(importance=...)`. The score of a neuron is
        its sensitivity S, that of a weight `S |w|`: to first order, the mean change of an output
        without the weight, for an input of magnitude 1. Neurons of the head have the score 1/C
        ("sampled": on average; "local": as all others). It raises DataError if there is no batch.
    """
    batches = repeatable(batches)

    def scores(model: nn.Module, granularity: Granularity) -> dict[str, Tensor]:
        check_granularity(granularity)
        serene = SeReNe(
            model, estimate=estimate, every=1, class_dim=class_dim, seed=seed, exclude=()
        )
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        try:
            with evaluation_mode(model), torch.enable_grad():
                for inputs, _ in labelled(batches, device):
                    serene.observe(scores_of(inputs.call(model)))
            found = serene.sensitivity()
        finally:
            serene.remove()
        if not found and weighted_layers(model):
            raise DataError("there is no batch to calibrate the scores on")
        if granularity == "neuron":
            return found
        layers = weighted_layers(model)
        return {n: layers[n].weight.detach().abs() * spread(layers[n], s) for n, s in found.items()}  # type: ignore[union-attr, operator]

    return scores
