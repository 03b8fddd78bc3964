"""Apply a plan to a model, or to a freshly built one before its lean weights are loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from snello.errors import ConfigError, ModelError
from snello.graph import capture
from snello.graph.coupled.cut import set_size
from snello.simplification.ir.plan import SimplificationPlan
from snello.wrappers import check_module, computed_memo, copied

from .appliers import apply_edit
from .arguments import erase_arguments, wake_dropout
from .builder import Builder
from .check import check
from .code import reach_directly
from .guard import guard
from .narrow import narrow

_PLAN = "_snello_plan"
"""Attribute of a lean model, and key in the `meta` of a graph module, with the plan as JSON."""

CONFIG_KEY = "snello_plan"
"""Entry of a Hugging Face configuration with the plan as JSON: `save_pretrained` writes it."""


def apply(plan: SimplificationPlan, model: nn.Module) -> nn.Module:
    """Make a lean copy of a model by a plan.

    Rows and columns of weights are selected; folded constants are zero until values are loaded. To
    load a lean model, build the original architecture, apply the plan and load the lean
    `state_dict`.

    Args:
        plan: a plan of `snello.simplification.make_plan`, or one read from JSON.
        model: a model of the architecture for which the plan was made; it is not changed.

    Returns:
        A captured graph with the original layer names, or a module of the model's own class; see
        [`SimplificationPlan.representation`][snello.simplification.SimplificationPlan.representation].

    Raises:
        ModelError: if the plan was made for another architecture, naming the layer.
        ConfigError: if the plan is not a
            [`SimplificationPlan`][snello.simplification.SimplificationPlan].
    """
    check_module(model, "apply")
    if not isinstance(plan, SimplificationPlan):
        raise ConfigError(f"apply: the plan is a {type(plan).__name__}, not a SimplificationPlan")
    if plan.base is not None and plan_of(model) is None:
        model = apply(plan.base, model)
    lean = _as_module(plan, model) if plan.representation == "module" else _as_graph(plan, model)
    return in_modes_of(model, lean)


def in_modes_of(model: nn.Module, lean: nn.Module) -> nn.Module:
    """Set each module of a lean model to the mode that it has in the original; return the former.

    Not by `lean.train()`, which would wake a BatchNorm that the user keeps in evaluation mode.
    """
    modes = {name: module.training for name, module in model.named_modules()}
    for name, module in lean.named_modules():
        module.training = modes.get(name, model.training)
    return lean


def _as_module(plan: SimplificationPlan, model: nn.Module) -> nn.Module:
    lean = copied(model)
    narrow_in_place(plan, lean)
    return lean


def narrow_in_place(plan: SimplificationPlan, model: nn.Module) -> None:
    """Make a model lean in place, for libraries that build and load models themselves.

    Args:
        plan: a plan with the representation "module".
        model: a model of the architecture for which the plan was made; may be on the meta device.

    Raises:
        ModelError: if the plan changes the graph, or was made for another architecture.
    """
    if plan.edits:
        raise ModelError(
            f"the plan changes the graph ({plan.edits[0].nodes[0]!r}): that needs the representation 'graph'"
        )
    if plan.base is not None and plan_of(model) is None:
        narrow_in_place(plan.base, model)
    check(plan, model)
    narrow(model, plan)
    for name, value in plan.attributes.items():
        set_size(model, name, value)
    _keep(plan, model)


def _as_graph(plan: SimplificationPlan, model: nn.Module) -> nn.Module:
    # In evaluation mode, because tracing fixes the mode of functional dropout and of branches on
    # ``self.training``.
    original = sharing_parameters(model).eval()
    lean = capture(original, constants=plan.constants).module
    check(plan, lean)
    wake_dropout(original, lean, plan.constants)
    builder = Builder(lean)
    for edit in plan.edits:
        apply_edit(builder, edit)
    lean.graph.eliminate_dead_code()
    erase_arguments(lean.graph, plan.constants)
    # Remove the layers of dead branches first: they need no narrowing.
    lean.delete_all_unused_submodules()
    narrow(lean, plan)
    _own_parameters(lean, model)
    # Tensors created in the forward are created again when a fresh model is traced, and are
    # therefore not part of the state_dict.
    lean._non_persistent_buffers_set |= {
        name for name in lean._buffers if name.startswith("_tensor_constant")
    }
    lean.graph.on_generate_code(lambda _: reach_directly)
    lean.recompile()
    _keep(plan, lean)
    lean.__class__.__name__ = type(model).__name__
    return lean


def _keep(plan: SimplificationPlan, lean: nn.Module) -> None:
    """Store the plan in a lean model, as text, so that pickles and copies contain it."""
    text = plan.to_json()
    setattr(lean, _PLAN, text)
    if isinstance(lean, fx.GraphModule):  # copies keep ``meta``, pickles keep the attribute
        lean.meta[_PLAN] = text
        guard(lean, plan.domain)
    # Hugging Face libraries write the configuration with the weights, and the plan with it.
    config = getattr(lean, "config", None)
    if hasattr(lean, "save_pretrained") and hasattr(config, "to_dict"):
        setattr(config, CONFIG_KEY, text)


def sharing_parameters(model: nn.Module) -> nn.Module:
    """Copy a model that shares its parameters with the original, to save memory."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    return copy.deepcopy(model, computed_memo(model) | shared)


def _own_parameters(lean: fx.GraphModule, model: nn.Module) -> None:
    """Copy the parameters that the lean model still shares with the original.

    Parameters that were narrowed are new tensors already.
    """
    shared = {id(parameter) for parameter in model.parameters()}
    # One memo for all copies, so that tied parameters stay tied.
    memo: dict[int, object] = {id(p): p for p in lean.parameters() if id(p) not in shared}
    for parent in list(lean.modules()):
        for name, module in parent._modules.items():
            # Whole modules are copied, because recurrent layers hold further references to their
            # parameters (flat weights).
            if module is not None and any(id(p) in shared for p in module._parameters.values()):
                parent._modules[name] = copy.deepcopy(module, memo)
    for name, parameter in lean._parameters.items():
        lean._parameters[name] = copy.deepcopy(parameter, memo)


def plan_of(lean: nn.Module) -> SimplificationPlan | None:
    """Return the plan that made a lean model; None for a model that was not simplified."""
    kept = lean.meta if isinstance(lean, fx.GraphModule) else {}
    text = kept.get(_PLAN) or getattr(lean, _PLAN, None)
    return SimplificationPlan.from_json(text) if text else None


def write_values(lean: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write folded constants into a lean model to which the plan was applied.

    Args:
        lean: changed in place.
        values: key in the `state_dict` -> value. Keys that the model does not have, such as those
            of removed branches, are ignored.
    """
    state = lean.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in values.items():
            if name in state:
                state[name].copy_(value)
