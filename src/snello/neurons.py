"""Neurons of a layer, their weights, and masks.

A *neuron* is one output unit of a `Linear` layer, one output channel of a convolution, or one
channel of a normalisation layer's affine transform. It is *dead* when every weight that feeds it is
exactly zero.

>>> layer = nn.Conv2d(3, 8, 3)
>>> neuron_count(layer), rows(layer, layer.weight).shape
(8, torch.Size([8, 27]))

All parts of snello exchange masks in one form: keyed by the qualified name of the parameter
(`"conv1.weight"`), true where the weight is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from .errors import ConfigError, ModelError, nearest

Masks = dict[str, Tensor]
"""Qualified parameter name -> boolean tensor of its shape, true where the weight is kept."""

WEIGHTED = (nn.Linear, _ConvNd)
"""Layers whose neurons have incoming weights; `_ConvNd` includes the transposed ones."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
"""Normalisation layers: a neuron is one channel of the affine transform."""


def qualified(layer: str, key: str) -> str:
    """Name of a parameter of a layer; the layer's name is empty if it is the whole model."""
    return f"{layer}.{key}" if layer else key


def is_weighted(module: nn.Module) -> bool:
    """Return true for layers with incoming weights: Linear and convolutions, transposed or not."""
    return isinstance(module, WEIGHTED)


def is_norm(module: nn.Module) -> bool:
    """Return true for BatchNorm, InstanceNorm, LayerNorm and GroupNorm with affine transforms."""
    return isinstance(module, NORMS) and getattr(module, "weight", None) is not None


def is_batchnorm(module: nn.Module) -> bool:
    """Return true for a BatchNorm of any dimension."""
    return isinstance(module, _BatchNorm)


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with incoming weights, in registration order.

    A shared module is listed once, under its first name.
    """
    return {name: module for name, module in model.named_modules() if is_weighted(module)}


def neuron_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that have neurons: `weighted_layers` and the affine normalisation layers."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_weighted(module) or is_norm(module)
    }


def head(model: nn.Module) -> str | None:
    """Name of the output layer: the last layer with weights, in registration order.

    Its neurons are the classes, never removed or frozen. None for a model without weights.
    """
    return next(reversed(weighted_layers(model)), None)


def computed(module: nn.Module) -> str | None:
    """The reason why a layer's weight or bias cannot be held at a value; None if it can.

    A weight that is computed from other parameters in every forward loses any value written to it.

    Returns:
        One sentence, with the way to make it a plain parameter.
    """
    for key in ("weight", "bias"):
        parameter = module._parameters.get(key)
        if parameter is not None and is_lazy(parameter):  # type: ignore[no-untyped-call]
            return f"its {key} has no shape before the first forward; run the model once"
        if parameter is not None and parameter.is_meta:
            return f"its {key} is on the meta device, without values; load the weights first"
        if parameter is None and getattr(module, key, None) is not None:
            return f"its {key} is computed, not a parameter; {_way_to_plain(module, key)} makes it plain"
    return None


def plain_layers(layers: Mapping[str, nn.Module]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers whose weights are plain parameters, and for the others the reason why not."""
    left = {name: reason for name, module in layers.items() if (reason := computed(module))}
    return {name: module for name, module in layers.items() if name not in left}, left


def _way_to_plain(module: nn.Module, key: str) -> str:
    if is_parametrized(module, key):
        return f"torch.nn.utils.parametrize.remove_parametrizations(layer, {key!r})"
    if hasattr(module, f"{key}_mask") and hasattr(module, f"{key}_orig"):
        return "snello.pruning.import_masks(model)"
    if hasattr(module, f"{key}_g") and hasattr(module, f"{key}_v"):
        return f"torch.nn.utils.remove_weight_norm(layer, {key!r})"
    if hasattr(module, f"{key}_orig") and hasattr(module, f"{key}_u"):
        return f"torch.nn.utils.remove_spectral_norm(layer, {key!r})"
    return f"an nn.Parameter called {key!r}"


def neuron_count(module: nn.Module) -> int:
    """Number of neurons of a layer (output units, output channels, or affine channels)."""
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, _ConvNd):
        return module.out_channels
    if is_norm(module):
        return int(module.weight.numel())  # type: ignore[union-attr, operator]
    raise ConfigError(
        f"{type(module).__name__} has no neurons; see snello.neurons for the layers that do"
    )


def rows(module: nn.Module, tensor: Tensor) -> Tensor:
    """Regroup a tensor of the weight's shape so that row *i* belongs to neuron *i*.

    Args:
        module: a layer with neurons.
        tensor: the weight, its gradient, or a mask of the weight's shape.

    Returns:
        Shape `(neurons, incoming weights per neuron)`; a view where the layout of the layer
        allows one.
    """
    if isinstance(module, _ConvTransposeNd):
        tensor = outputs_first(tensor, module.groups)
    count = neuron_count(module)
    return tensor.reshape(count, tensor.numel() // count if count else 0)


def outputs_first(weight: Tensor, groups: int = 1) -> Tensor:
    """Regroup the weight of a transposed convolution like that of a plain one.

    Args:
        weight: shape `(inputs, outputs / groups, *kernel)`, or a mask or gradient of that shape.
        groups: groups of the convolution; each group of inputs feeds outputs of its own.

    Returns:
        Shape `(outputs, inputs / groups, *kernel)`; a view where there is one group.
    """
    grouped = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    return grouped.transpose(1, 2).flatten(0, 1)


def neuron_axis(module: nn.Module) -> int | None:
    """Dimension of a layer's weight along which its neurons lie; None if every entry is one.

    1 for transposed convolutions (where groups share it, see `outputs_first`), None for
    LayerNorm, 0 for all others.
    """
    if isinstance(module, nn.LayerNorm):
        return None
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def padding_of(conv: _ConvNd) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding of a convolution before and after each spatial axis, also for `"same"`."""
    sides = conv._reversed_padding_repeated_twice  # last axis first, both sides of each
    return tuple(sides[::2][::-1]), tuple(sides[1::2][::-1])


def spread(module: nn.Module, per_neuron: Tensor) -> Tensor:
    """One value per neuron, shaped to broadcast over the weight: the inverse view of `rows`.

    Args:
        module: a layer with neurons.
        per_neuron: shape `(neurons,)`.

    Returns:
        A tensor that broadcasts against `module.weight` along the neuron axis.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, _ConvTransposeNd):
        groups, fan_in = module.groups, module.in_channels // module.groups
        # The outputs of a group repeat for each of its inputs.
        by_group = per_neuron.reshape(groups, 1, -1).expand(groups, fan_in, -1)
        return by_group.reshape(module.in_channels, -1, *[1] * (weight.dim() - 2))
    if isinstance(module, nn.LayerNorm):
        return per_neuron.reshape(weight.shape)
    return per_neuron.reshape(-1, *[1] * (weight.dim() - 1))


def spread_inputs(module: nn.Module, per_input: Tensor) -> Tensor:
    """One value per input channel, shaped to broadcast over the weight.

    Args:
        module: Linear, a convolution or a transposed one.
        per_input: shape `(inputs,)`.
    """
    weight: Tensor = module.weight  # type: ignore[assignment]
    kernel = [1] * (weight.dim() - 2)
    if isinstance(module, _ConvTransposeNd):
        return per_input.reshape(-1, 1, *kernel)
    if isinstance(module, _ConvNd):
        # Row i of the weight holds the input channels of its own group alone.
        by_group = per_input.reshape(module.groups, -1)
        by_row = by_group.repeat_interleave(len(weight) // module.groups, 0)
        return by_row.reshape(*by_row.shape, *kernel)
    return per_input


def dead_neurons(module: nn.Module) -> Tensor:
    """Boolean, shape `(neurons,)`, true where all weights of a neuron are exactly zero.

    A zero *sum* is not enough: the weights of a Sobel filter sum to zero, too.
    """
    return (rows(module, module.weight.detach()) == 0).all(dim=1)  # type: ignore[union-attr, operator]


def input_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating parameter, usually that of the first layer."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by qualified name, tied ones under each of their names."""
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {**buffers, **dict(model.named_parameters(remove_duplicate=False))}


def tied_parameters(model: nn.Module) -> list[list[str]]:
    """Groups of qualified names of the same tensor (tied weights, shared modules)."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def parameter_owners(model: nn.Module) -> dict[int, int]:
    """Parameter's id -> number of distinct modules that hold it; a shared module counts once."""
    held = (p for module in model.modules() for p in module.parameters(recurse=False))
    return Counter(map(id, held))


LayerFilter = (
    str | type[nn.Module] | Iterable[str | type[nn.Module]] | Callable[[str, nn.Module], bool]
)
"""Layers to leave out: names of layers or of modules that contain them, types, or a function of
name and module that returns true for them."""


def select_layers(
    layers: Mapping[str, nn.Module], exclude: LayerFilter, what: str
) -> dict[str, nn.Module]:
    """Return the layers that are not excluded.

    Raises:
        ConfigError: for a name of no layer and of no module with layers; the message lists the
            existing names; and for anything else than a name, a type or a function.
    """
    if isinstance(exclude, (str, type)):
        exclude = [exclude]
    if callable(exclude) and not isinstance(exclude, nn.Module):
        return {name: module for name, module in layers.items() if not exclude(name, module)}
    given = list(exclude) if isinstance(exclude, Iterable) else [exclude]
    names = {item for item in given if isinstance(item, str)}
    types = tuple(item for item in given if isinstance(item, type))
    if odd := [item for item in given if not isinstance(item, (str, type))]:
        raise ConfigError(
            f"{what}: names of layers, types such as nn.Linear, or a function of name and module are needed, not "
            f"a {type(odd[0]).__name__}"
        )
    if unknown := sorted(n for n in names if not any(is_within(layer, n) for layer in layers)):
        hint = nearest(unknown[0], layers)
        raise ConfigError(
            f"{what}: no layer is called {unknown[0]!r}{hint}; the layers are: {', '.join(layers)}"
        )
    return {
        name: module
        for name, module in layers.items()
        if not isinstance(module, types) and not any(is_within(name, n) for n in names)
    }


def is_within(layer: str, name: str) -> bool:
    """Return true if a name is that of a layer or of a module around it."""
    return layer == name or layer.startswith(f"{name}.")


def check_granularity(given: object) -> None:
    """Refuse to score anything but weights or neurons.

    Raises:
        ConfigError: with the functions that score channels.
    """
    if given not in ("weight", "neuron"):
        raise ConfigError(
            "these are scores of weights or neurons; for channels give those of "
            "snello.pruning.channels: group_taylor(batches), or neuron_scores(scores)"
        )


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Number of parameters and number of non-zero ones, tied parameters once."""
    total = sum(p.numel() for p in model.parameters())
    return total, sum(int(torch.count_nonzero(p)) for p in model.parameters())


@torch.no_grad()
def check_finite(model: nn.Module, what: str) -> None:
    """Raise an error if a tensor of a model holds a NaN, or a parameter an infinity.

    Buffers may hold infinities, as masks before a softmax do.

    Args:
        model: on any device.
        what: the model's file or name, for messages.

    Raises:
        ModelError: naming the first such tensor.
    """
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.is_meta:
            continue
        bad = tensor.isnan() if name not in parameters else ~tensor.isfinite()
        if count := int(bad.sum()):
            raise ModelError(
                f"{what}: tensor {name!r} has {count} of {tensor.numel()} values that are NaN or infinite: take the "
                "weights of an earlier epoch, or train again with a lower learning rate"
            )


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every weight whose mask is false to exactly zero, in place.

    Raises:
        ConfigError: for a mask whose parameter is missing or has another shape.
    """
    parameters = masked_parameters(model, masks)
    for name, mask in masks.items():
        parameters[name].masked_fill_(~mask.to(parameters[name].device), 0)


def masks_beside(model: nn.Module, masks: Mapping[str, Tensor]) -> Masks:
    """Copies of masks on the devices of their weights; others would be moved at every step.

    Raises:
        ConfigError: as `apply_masks`.
    """
    parameters = masked_parameters(model, masks)
    return {n: mask.to(parameters[n].device, copy=True) for n, mask in masks.items()}


def masked_parameters(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, nn.Parameter]:
    """Look up the parameters named by masks; tied ones under any of their names.

    Raises:
        ConfigError: for a mask whose parameter is missing, computed, or has another shape.
    """
    if not isinstance(masks, Mapping):
        raise ConfigError(
            f"masks: a mapping from names to tensors is needed, not a {type(masks).__name__}"
        )
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ConfigError(
                f"mask {name!r}: must be a boolean tensor, true where kept, not {kind}"
            )
        parameter = parameters.get(name)
        if parameter is None or parameter.shape != mask.shape:
            found = (
                _missing(model, name) if parameter is None else f"shape {tuple(parameter.shape)}"
            )
            raise ConfigError(
                f"mask {name!r} of shape {tuple(mask.shape)} does not fit the model: {found}"
            )
    return {name: parameters[name] for name in masks}


def _missing(model: nn.Module, name: str) -> str:
    owner, _, _ = name.rpartition(".")
    module = dict(model.named_modules()).get(owner)
    return (None if module is None else computed(module)) or "no such parameter"


def iter_rows(layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, layer and the weight regrouped by neuron, for each layer."""
    for name, module in layers.items():
        yield name, module, rows(module, module.weight)  # type: ignore[arg-type]
