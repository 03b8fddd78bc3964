"""From a model to a verified lean model: the first of the candidates that holds."""

from __future__ import annotations

from torch import nn

from snello.graph import Example, Inputs
from snello.neurons import check_finite
from snello.optimizers import Optimizers, optimizers_of
from snello.wrappers import double, doubled, unwrapped

from . import runtime as runtime  # registers the rules of modules inside lean networks
from .candidate import holds, not_verifiable, stored
from .candidates import candidates_of, left_as_it_is
from .cost import CostModel, cost_model
from .ir.plan import SimplificationPlan
from .rewrite import apply, in_modes_of, rebind, sharing_parameters


def simplify(
    model: nn.Module,
    example_inputs: Example,
    *,
    optimizer: Optimizers = None,
    prefer: str | CostModel = "bytes",
    round_to: int = 1,
    keep_class: bool = False,
) -> nn.Module:
    """Remove every dead neuron that can be removed; the outputs in evaluation mode stay the same.

    The result is verified in float64 on the example inputs, and at another batch size and
    resolution if the model accepts them, before it is returned.

    Args:
        model: a model that runs on the example inputs; it is not changed.
        example_inputs: inputs of the real shape, batch first: a tensor, a tuple of positional
            arguments, a mapping of keyword arguments, or [`snello.graph.Inputs`][]; of any
            nesting.
        optimizer: an optimizer of the model's parameters, or a list of several: its groups are
            rebound to the lean parameters, and its state (momentum, Adam's moments) is narrowed to
            the kept rows and columns, so that training can continue. It is changed only after
            everything else has succeeded.
        prefer: "bytes" removes every dead neuron; "latency" keeps dead neurons whose removal would
            cost more time in index operations and tables than it saves; "plain" keeps those whose
            removal would need any of these, for int8 runtimes and compilers, because index
            operations prevent the fusion of operations. Or a
            [`CostModel`][snello.simplification.CostModel], such as `LatencyCost(timings)` with the
            timings of another machine.
        round_to: keep dead neurons until the channel counts of linear layers and ungrouped
            convolutions are multiples of this number, for hardware that is faster at multiples.
        keep_class: keep dead neurons wherever their removal would change more than layers, so that
            the result is of the model's own class, with its own forward. Implies the choices of
            "plain"; `prefer` is then only checked.

    Returns:
        A new module with the original layer names. `plan_of(lean)` lists the removals. If
        narrowing layers is enough, it is of the model's own class; this is always so with
        `keep_class`, and if torch.fx cannot trace the model. Else it is a captured graph with
        index operations; see `plan_of(lean).representation`. If there is nothing to remove, it
        computes the same operations as the original.

    Raises:
        ModelError: if the model does not run on the example inputs, has an output that cannot be
            verified, or contains a NaN.
        ConfigError: for another preference, a `round_to` below 1, or an optimizer that holds
            parameters which are not the model's.
        SimplifyError: if the outputs differ, naming the first layer that does. The model is
            untouched.
    """
    model = _checked_model(model, "simplify")
    inputs = Inputs.of(example_inputs)
    source = sharing_parameters(model).eval()
    optimizers = optimizers_of(optimizer, "simplify")
    # Folded constants are rounded to the model's dtype; exactness is checked on a copy in float64.
    # A copy even if the model is in float64: some models store values for the size of an input.
    reference = sharing_parameters(source) if _is_double(source) else doubled(source)
    candidates = candidates_of(source, inputs, cost_model(prefer), round_to, keep_class)
    chosen = next((c for c in candidates if holds(c, reference, inputs)), None)
    if chosen is None:
        raise not_verifiable(reference, inputs)
    lean = chosen.build(source)
    plan = chosen.plan
    if stored(lean) > stored(source):  # folded constants can take more than small neurons
        plan = left_as_it_is(plan, "it would only have grown")
        lean = apply(plan, source)
    rebind(optimizers, model, lean, plan)
    return in_modes_of(model, lean)


def make_plan(
    model: nn.Module,
    example_inputs: Example,
    *,
    prefer: str | CostModel = "bytes",
    round_to: int = 1,
    keep_class: bool = False,
) -> SimplificationPlan:
    """Return the plan of `simplify` without applying it. Arguments and errors as there."""
    model = _checked_model(model, "make_plan")
    source, inputs = sharing_parameters(model).eval(), Inputs.of(example_inputs)
    return next(candidates_of(source, inputs, cost_model(prefer), round_to, keep_class)).plan


def _checked_model(model: nn.Module, what: str) -> nn.Module:
    """Unwrap a model.

    Raises:
        ModelError: for a sharded or scripted model, or a NaN among its weights.
    """
    model = unwrapped(model, what)
    check_finite(model, type(model).__name__)
    return model


def _is_double(model: nn.Module) -> bool:
    return all(double(x) is x for x in (*model.parameters(), *model.buffers()))
