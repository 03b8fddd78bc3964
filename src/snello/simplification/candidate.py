"""A way to simplify a model, and the checks of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx, nn

from snello.errors import ModelError, SimplifyError, reason_of
from snello.graph import Inputs
from snello.neurons import dead_neurons, weighted_layers

from .ir.channels import Layout
from .ir.plan import SimplificationPlan
from .rewrite import apply, write_values
from .verify import compare, verify


@dataclass(frozen=True)
class Candidate:
    """A way to simplify a model.

    Attributes:
        plan, values: the plan, and the values of the folded constants.
        layouts, axes: layout of each node in the lean model, and the axis of its channels, for
            error messages; empty for the representation "module".
    """

    plan: SimplificationPlan
    values: Mapping[str, Tensor]
    layouts: Mapping[fx.Node, Layout] = field(default_factory=dict)
    axes: Mapping[fx.Node, int] = field(default_factory=dict)

    def build(self, original: nn.Module) -> nn.Module:
        """Make the lean model."""
        lean = apply(self.plan, original)
        write_values(lean, self.values)
        return lean


def holds(candidate: Candidate, reference: nn.Module, inputs: Inputs) -> bool:
    """True if the outputs of a candidate agree with those of the original.

    Raises:
        SimplifyError: if those of a captured graph differ: it is the last candidate.
    """
    if candidate.plan.representation == "graph":
        try:
            verify(reference, candidate.build(reference), candidate.layouts, candidate.axes, inputs)
        except SimplifyError:
            raise
        except Exception:  # an index that does not fit another size: the model's own forward may
            return False
        return True
    try:
        compare(
            reference,
            candidate.build(reference),
            inputs,
            "narrowed outputs",
            lambda _: "the output",
            decisions=True,
        )
    except Exception:  # the model's own code may raise anything on narrower tensors
        return False
    return True


def not_verifiable(reference: nn.Module, inputs: Inputs) -> ModelError:
    """The error for a model whose unchanged copy does not have the same outputs."""
    name = type(reference).__name__
    try:
        compare(reference, reference, inputs, "outputs", lambda _: "the output", decisions=True)
    except SimplifyError:
        return ModelError(
            f"{name} gives other outputs each time it runs in evaluation mode, so that no change of "
            "it can be verified. A usual cause is that forward() draws random numbers."
        )
    except Exception as error:  # whatever an operation raises that has no float64
        return ModelError(
            f"{name} does not run in float64, in which its outputs are verified: {reason_of(error)}"
            f"{_of_experts(reference)}"
        )
    return ModelError(f"{name} computes something else once it is copied: it cannot be verified")


def _of_experts(model: nn.Module) -> str:
    """Advice for a mixture of experts of transformers, whose default kernel has no float64."""
    chosen = getattr(getattr(model, "config", None), "_experts_implementation", None)
    if chosen != "grouped_mm":
        return ""
    return "; choose another one by model.set_experts_implementation('batched_mm')"


def has_dead_neurons(candidate: Candidate, model: nn.Module) -> bool:
    """True if a candidate still has neurons without a weight, or cannot be built."""
    try:
        lean = candidate.build(model)
    except Exception:  # a layer without any input has no lean one of its class
        return True
    return any(bool(dead_neurons(layer).any()) for layer in weighted_layers(lean).values())


def stored(model: nn.Module) -> int:
    """Number of elements in the model's `state_dict`."""
    return sum(value.numel() for value in model.state_dict().values())
