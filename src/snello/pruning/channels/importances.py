"""Importances of the channels of a dimension: reductions over the slices of each channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, DataError, nearest
from snello.graph import (
    Inputs,
    Labelled,
    Loss,
    evaluation,
    evaluation_mode,
    labelled,
    loss_of,
    repeatable,
    requiring_gradients,
    unlabelled,
)
from snello.graph.coupled import Coupling, Member
from snello.neurons import is_batchnorm, is_weighted, named_tensors, neuron_count, qualified
from snello.processes import sum_on_cpu
from snello.pruning._importance import chosen_importance

from ._outputs import channels_last, output_products, writers

Reduce = Literal["sum", "mean", "max", "first"]
ChannelImportance = Callable[[nn.Module, Coupling], dict[str, Tensor]]
"""(model, coupling) -> dimension name -> scores of shape `(width,)`. Channels with low scores are
removed first; dimensions without scores keep their width."""


def magnitude(p: int = 2, reduce: Reduce = "mean") -> ChannelImportance:
    r"""Sum of powers of the weights: $\|w\|_p^p$ of the slice of each member, reduced over members.

    Args:
        p: 1 or 2.
        reduce: reduction over the weights that write and read a channel; "first" only uses the
            first of them, which is a writer.

    Source: Li et al., "Pruning filters for efficient ConvNets", ICLR 2017; by group: Fang et al.,
    "DepGraph", CVPR 2023, eq. 5.
    """
    if p not in (1, 2):
        raise ConfigError(f"magnitude: p is 1 or 2, not {p}")
    _check_reduce(reduce)

    def scores(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        parameters = named_tensors(model)
        found = {}
        for dimension in coupling.free:
            own = [
                member.sums(parameters[member.name].detach().abs() ** p).cpu()
                for member in dimension.members
                if member.role in ("write", "read")
            ]
            if own:
                found[dimension.name] = _reduced(torch.stack(own), reduce)
        return found

    return _called(scores, f"magnitude of order {p}, {reduce}")


def norm_scale(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
    r"""Mean of $|\gamma|$ over the BatchNorms of a channel.

    Dimensions without a BatchNorm keep their width.

    Raises:
        ConfigError: for a network in which no BatchNorm has a scale.

    Source: Liu et al., "Network slimming", ICCV 2017, section 3.
    """
    scales = {
        qualified(name, "weight"): module.weight.detach().abs()
        for name, module in model.named_modules()
        if is_batchnorm(module) and module.weight is not None
    }
    found = {}
    for dimension in coupling.free:
        own = [m.sums(scales[m.name]) for m in dimension.members if m.name in scales]
        if own:
            found[dimension.name] = torch.stack(own).mean(0)
    if not found:
        raise ConfigError(
            f"norm_scale needs a BatchNorm with a scale; {type(model).__name__} has none"
        )
    return found


def group_taylor(
    batches: Iterable[Labelled],
    loss: Loss | None = None,
    *,
    of: Literal["weights", "outputs"] = "weights",
    reduce: Reduce = "sum",
) -> ChannelImportance:
    r"""First-order change of the loss: $\sum_m |\sum_{w \in m} w\,\partial L/\partial w|$.

    The inner sum is over the slice of one parameter, the outer one over the members. The scores are
    means over batches, with the model in evaluation mode. Of outputs, the score is
    $\sum_l \frac{1}{B} \sum_b |\sum_p a_{lbp}\,\partial L_b/\partial a_{lbp}|$ with the outputs a of
    the layers l that write the channel, samples b and positions p.

    Args:
        batches: calibration data, pairs of inputs and targets.
        loss: function of outputs and targets; default: cross-entropy.
        of: "weights", or "outputs" of the Linear and convolution layers that write a channel; the
            loss must then be a mean over samples.
        reduce: reduction over the members; "sum" is the change of the loss.

    Source: Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, eq. 8;
    of outputs: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017, eq. 8; by group: Fang et al., "DepGraph", CVPR 2023.
    """
    _check_reduce(reduce)
    if of not in ("weights", "outputs"):
        raise ConfigError(f"group_taylor: of is 'weights' or 'outputs', not {of!r}")
    if of == "outputs":
        scores = _output_scores(batches, loss, reduce)
    else:
        scores = _gradient_scores(batches, loss, torch.abs, reduce=reduce)
    return _called(scores, f"group_taylor of {of}, {reduce}{_named(loss)}")


def group_fisher(batches: Iterable[Labelled], loss: Loss | None = None) -> ChannelImportance:
    r"""Diagonal of the Fisher information: $\sum_b (\sum_{w} w\,\partial L_b/\partial w)^2$.

    The inner sum is over all weights of the channel, the outer one over batches: with batches of
    one sample it is the empirical Fisher information of a scale on the channel.

    Args:
        batches: calibration data, pairs of inputs and targets; smaller batches are closer to the
            Fisher information.
        loss: function of outputs and targets; default: cross-entropy.

    Source: Liu et al., "Group Fisher pruning for practical network compression", ICML 2021, eq. 8.
    """
    scores = _gradient_scores(batches, loss, lambda product: product, whole=torch.square)
    return _called(scores, f"group_fisher{_named(loss)}")


def activation(batches: Iterable[Any], reduce: Reduce = "mean") -> ChannelImportance:
    """Mean absolute output of the modules that write a channel, each divided by its own mean.

    Args:
        batches: inputs without targets.
        reduce: reduction over the modules.

    Source: Molchanov et al., "Pruning convolutional neural networks for resource efficient
    inference", ICLR 2017, section 2.2, "activation".
    """

    _check_reduce(reduce)
    batches = repeatable(batches)

    def scores(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
                values = channels_last(module, output.detach().abs())
                means = values.flatten(0, -2).double().mean(0)
                sums[name] = sums.get(name, torch.zeros_like(means)) + means

            return hook

        handles = [m.register_forward_hook(keep(name)) for name, m in writers(model, coupling)]
        try:
            _run_all(model, batches)
        finally:
            for handle in handles:
                handle.remove()
        sums = {name: sum_on_cpu(total) for name, total in sums.items()}
        scaled = {name: total / total.mean().clamp_min(1e-30) for name, total in sums.items()}
        return _of_writers(coupling, scaled, reduce)

    return _called(scores, f"activation, {reduce}")


def neuron_scores(
    scores: Mapping[str, Tensor] | Callable[[nn.Module, Any], Mapping[str, Tensor]],
    reduce: Reduce = "mean",
) -> ChannelImportance:
    """Scores of channels from scores of neurons, such as SeReNe's, reduced over the writers.

    Args:
        scores: layer name -> score of each neuron, shape `(neurons,)`; or a function of model and
            granularity that returns them, such as [`snello.sensitivity.serene_scores`][] and
            `lobster_scores` make: it is called again on the narrower network of every step. The
            scores of each layer are divided by their mean.
        reduce: reduction over the layers that write a channel.

    Raises:
        ConfigError: when called, if a layer has another number of neurons, such as in the second
            step of a pruning with scores of the first.
    """
    _check_reduce(reduce)

    def measure(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        found = scores if isinstance(scores, Mapping) else scores(model, "neuron")
        layers = dict(model.named_modules(remove_duplicate=False))
        for name, value in found.items():
            if name not in layers:
                raise ConfigError(
                    f"neuron_scores: {type(model).__name__} has no layer {name!r}"
                    f"{nearest(name, layers)}"
                )
            if is_weighted(layers[name]) and len(value) != neuron_count(layers[name]):
                raise ConfigError(
                    f"neuron_scores: {len(value)} scores for layer {name!r}, which has "
                    f"{neuron_count(layers[name])} neurons; give a function of the model, such as "
                    "serene_scores(batches), so that each step measures its own network"
                )
        scaled = {name: value / value.mean().clamp_min(1e-30) for name, value in found.items()}
        return _of_writers(coupling, scaled, reduce)

    return _called(measure, f"neuron_scores{_named(scores)}, {reduce}")


def random(seed: int = 0) -> ChannelImportance:
    """Uniformly random scores, the baseline that every importance must beat.

    Args:
        seed: the same seed draws the same scores.
    """

    def scores(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {d.name: torch.rand(d.width, generator=generator) for d in coupling.free}

    return _called(scores, f"random, seed {seed}")


def importance_of(given: str | ChannelImportance) -> ChannelImportance:
    """The importance of a name; a function is returned unchanged.

    Raises:
        ConfigError: for an unknown name, with those that exist.
    """
    return chosen_importance(given, CHANNEL_IMPORTANCES)


def measured_scores(
    importance: ChannelImportance, model: nn.Module, coupling: Coupling
) -> dict[str, Tensor]:
    """Scores as float64 on the CPU, raised above zero, because zero means pruned.

    Raises:
        ConfigError: for scores that are negative or not finite, of a dimension that does not exist,
            or of another number of channels.
    """
    scores = importance(model, coupling)
    if not isinstance(scores, Mapping):
        raise ConfigError(
            "an importance of channels returns a dict, name of a dimension -> scores, not a "
            f"{type(scores).__name__}"
        )
    found = {}
    for name, score in scores.items():
        value = torch.as_tensor(score).detach().double().cpu()
        if value.shape != (coupling[name].width,):
            raise ConfigError(
                f"the scores of dimension {name!r} have shape {tuple(value.shape)}; it has "
                f"{coupling[name].width} channels"
            )
        if not torch.isfinite(value).all() or bool((value < 0).any()):
            raise ConfigError(f"the scores of dimension {name!r} must be finite and not negative")
        found[name] = value.clamp_min(torch.finfo(torch.float64).tiny)
    return found


def _gradient_scores(
    batches: Iterable[Labelled],
    loss: Loss | None,
    each: Callable[[Tensor], Tensor],
    whole: Callable[[Tensor], Tensor] | None = None,
    reduce: Reduce = "sum",
) -> ChannelImportance:
    """Importance from the products `w dL/dw`, summed over the slice of each channel.

    Args:
        batches: pairs of inputs and targets.
        loss: function of outputs and targets; None for cross-entropy.
        each: applied to the sum over the slice of each parameter.
        whole: applied to the sum over all parameters; None for the identity.
        reduce: reduction over the parameters.
    """
    batches = repeatable(batches)

    def scores(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        parameters = {n: p for n, p in named_tensors(model).items() if isinstance(p, nn.Parameter)}
        used = _trained_members(coupling, parameters)
        names = list({member.name for members in used.values() for member in members})
        if not names:
            return {}
        totals = {name: torch.zeros(coupling[name].width) for name in used}
        count = 0
        for inputs, targets in labelled(batches, parameters[names[0]].device):
            count += 1
            products = _products(model, [parameters[n] for n in names], inputs, targets, loss)
            by_name = dict(zip(names, products, strict=True))
            for name, members in used.items():
                own = [each(m.sums(by_name[m.name])) for m in members]
                summed = _reduced(torch.stack([value.cpu().double() for value in own]), reduce)
                totals[name] = totals[name] + (whole(summed) if whole else summed)
        return _means(totals, count)

    scores.normalise = None  # type: ignore[attr-defined]  # all in the unit of the loss
    return scores


def _output_scores(
    batches: Iterable[Labelled], loss: Loss | None, reduce: Reduce
) -> ChannelImportance:
    """Importance from the products `a dL/da` of the outputs of the layers that write a channel."""
    batches = repeatable(batches)

    def scores(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        layers = dict(writers(model, coupling))
        if not layers:
            return {}
        device = next(next(iter(layers.values())).parameters()).device
        sums = {n: torch.zeros(neuron_count(m), dtype=torch.float64) for n, m in layers.items()}
        count = 0
        for inputs, targets in labelled(batches, device):
            count += 1
            found = output_products(model, layers, inputs, targets, loss)
            for name, products in found.items():
                sums[name] += products
        return _of_writers(coupling, _means(sums, count), reduce)

    scores.normalise = None  # type: ignore[attr-defined]  # all in the unit of the loss
    return scores


def _means(totals: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Means over the batches of all processes.

    Raises:
        DataError: if there is no batch.
    """
    count = int(sum_on_cpu(torch.tensor(count)))
    if not count:
        raise DataError("there is no batch to calibrate the scores on")
    return {name: sum_on_cpu(total) / count for name, total in totals.items()}


def _called(scores: ChannelImportance, name: str) -> ChannelImportance:
    """The function under a name that tells it apart in the settings of a folder."""

    @wraps(scores)
    def checked(model: nn.Module, coupling: Coupling) -> dict[str, Tensor]:
        if not isinstance(coupling, Coupling):
            raise ConfigError(f"{name}: scores of channels, for granularity='channel' alone")
        return scores(model, coupling)

    checked.__qualname__ = name
    return checked


def _named(part: object) -> str:
    """The name of a function that an importance is made of, for its own name; "" for values."""
    name = getattr(part, "__qualname__", "")
    return f" of {name}" if name else ""


def _trained_members(
    coupling: Coupling, parameters: Mapping[str, nn.Parameter]
) -> dict[str, list[Member]]:
    return {
        d.name: [m for m in d.parameters if m.name in parameters and m.role in ("write", "read")]
        for d in coupling.free
    }


def _products(
    model: nn.Module,
    parameters: list[nn.Parameter],
    inputs: Inputs,
    targets: Any,
    loss: Loss | None,
) -> list[Tensor]:
    """`w * dL/dw` of each parameter."""
    with evaluation_mode(model), requiring_gradients(parameters):
        value = loss_of(inputs.call(model), targets, loss)
        found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else (p.detach() * g).detach()
        for p, g in zip(parameters, found, strict=True)
    ]


def _of_writers(
    coupling: Coupling, by_layer: Mapping[str, Tensor], reduce: Reduce
) -> dict[str, Tensor]:
    found = {}
    for dimension in coupling.free:
        own = [
            member.sums(by_layer[layer].cpu())
            for member in dimension.members
            if member.role == "write"
            and (layer := member.name.rpartition(".")[0]) in by_layer
            and len(by_layer[layer]) >= member.span
        ]
        if own:
            found[dimension.name] = _reduced(torch.stack(own), reduce)
    return found


def _reduced(values: Tensor, how: Reduce) -> Tensor:
    if how == "first":
        return values[0]
    if how == "max":
        return values.max(0).values
    return values.sum(0) if how == "sum" else values.mean(0)


def _check_reduce(reduce: str) -> None:
    if reduce not in ("sum", "mean", "max", "first"):
        raise ConfigError(f"reduce is one of sum, mean, max, first, not {reduce!r}")


def _run_all(model: nn.Module, batches: Iterable[Any]) -> None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    count = 0
    with evaluation(model):
        for inputs in unlabelled(batches, device):
            count += 1
            inputs.call(model)
    if not count:
        raise DataError("there is no batch to calibrate the scores on")


CHANNEL_IMPORTANCES: dict[str, ChannelImportance] = {
    "l1": magnitude(1), "l2": magnitude(2), "norm-scale": norm_scale, "random": random(),
}  # fmt: skip
