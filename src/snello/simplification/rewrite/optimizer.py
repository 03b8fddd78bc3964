"""Rebinding of an optimizer to the lean parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.optimizers import parameters_of
from snello.simplification.ir.plan import SimplificationPlan, Slice
from snello.simplification.runtime.attention import cut, cuts
from snello.simplification.runtime.ragged import RaggedConv, pairs

from .narrow import index_of, sliced_weight

Cut = Callable[[Tensor], Tensor]
"""A function from a tensor of the original parameter's shape to one of the lean parameter's."""


def rebind(
    optimizers: Sequence[torch.optim.Optimizer],
    model: nn.Module,
    lean: nn.Module,
    plan: SimplificationPlan,
) -> None:
    """Replace the original parameters by the lean ones, and narrow their state in the same way.

    Parameters that folding has added (biases) are added to the group of the layer's weight, without
    state. Parameters that were removed are removed from their group.

    Args:
        optimizers: changed in place.
        model: the original model.
        lean: the lean model.
        plan: the plan that made it.

    Raises:
        ConfigError: if an optimizer holds a parameter that is not the model's; nothing is changed
            then.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    for parameter in (p for optimizer in optimizers for p in parameters_of(optimizer)):
        if id(parameter) not in names:
            raise ConfigError(
                f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that is not this "
                "model's; give the optimizer that trains the model given to simplify()"
            )
    for optimizer in optimizers:
        _rebind(optimizer, names, model, lean, plan)


def _rebind(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    model: nn.Module,
    lean: nn.Module,
    plan: SimplificationPlan,
) -> None:
    lean_parameters = dict(lean.named_parameters(remove_duplicate=False))
    added = set(lean_parameters) - set(names.values())
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            name = names[id(parameter)]
            state = optimizer.state.pop(parameter, None)
            if (slim := lean_parameters.get(name)) is None:
                continue
            kept.append(slim)
            if state:
                cut = _cut(name, model, lean, plan)
                optimizer.state[slim] = {
                    k: _sliced(value, parameter, cut) for k, value in state.items()
                }
            if name.endswith("weight") and (bias := f"{name.removesuffix('weight')}bias") in added:
                kept.append(lean_parameters[bias])
        group["params"] = kept


def _sliced(value: object, parameter: Tensor, cut: Cut) -> object:
    """Narrow a state tensor of the parameter's shape; other state, such as counters, is kept."""
    return cut(value) if isinstance(value, Tensor) and value.shape == parameter.shape else value


def _cut(name: str, model: nn.Module, lean: nn.Module, plan: SimplificationPlan) -> Cut:
    """The function that narrows tensors of a parameter's shape in the same way as the parameter."""
    owner, _, attribute = name.rpartition(".")
    if (slices := plan.parameters.get(name)) is not None:
        return lambda x: _slice(x, slices)
    if (kept := plan.norms.get(owner)) is not None:
        return lambda x: x[index_of(kept, x)]
    for attention, narrowed in plan.attentions.items():
        if name.startswith(f"{attention}."):
            own = cuts(model.get_submodule(attention), narrowed)
            indices = own[name.removeprefix(f"{attention}.")]
            return lambda x: cut(x, indices)
    layer = plan.layers.get(owner)
    if layer is None:
        return lambda x: x
    if attribute == "bias":
        return lambda x: x[index_of(layer.kept_outputs, x)]
    module = model.get_submodule(owner)
    if isinstance(lean.get_submodule(owner), RaggedConv):
        rows, columns = pairs(layer)
        return lambda x: x[rows.to(x.device), columns.to(x.device)]
    return lambda x: sliced_weight(module, x, layer)


def _slice(x: Tensor, slices: Sequence[Slice]) -> Tensor:
    for part in slices:
        x = x.index_select(part.axis, index_of(part.kept, x))
    return x
