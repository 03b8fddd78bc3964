"""Residual branches: layers whose outputs are added to channels that other layers write, too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snello.graph import Example, Inputs, evaluation, evaluation_mode, requiring_gradients
from snello.graph.coupled import Coupling, Dimension
from snello.neurons import is_batchnorm, is_within
from snello.search.rate import float_tensors
from snello.simplification import simplify
from snello.wrappers import copied


@dataclass(frozen=True)
class Branch:
    """Everything that is computed only for one summand of a stream.

    Attributes:
        name: the layer that writes the summand, such as the last convolution of a residual block.
        zeroed: parameters that are zero in a network without the branch.
        within: parameters that no other output depends on; `zeroed` are some of them.
    """

    name: str
    zeroed: tuple[str, ...]
    within: frozenset[str]

    def is_within(self, module: str) -> bool:
        """True if the layer that writes the branch lies in a module."""
        return is_within(self.name, module)

    def contains(self, dimension: Dimension) -> bool:
        """True if the channels of a dimension exist only within the branch."""
        return bool(dimension.writers) and set(dimension.writers) <= self.within


def find_branches(model: nn.Module, groups: Coupling, example: Example) -> tuple[Branch, ...]:
    """The branches of a network that can be removed while another path still leads past them.

    A candidate is every layer that writes a dimension after another one has written it. With its
    parameters at zero, exactly those parameters have no gradient that only the branch uses. Of
    nested candidates, the outermost is a branch; and none is one that simplification keeps, such
    as a gate, which is a factor and not a summand.

    Args:
        model: the network; it is not changed.
        groups: its coupled channels.
        example: its example inputs.

    Raises:
        ModelError: if the model cannot be simplified.
    """
    inputs, probe = Inputs.of(example), _without_zeros(model)
    parameters = dict(probe.named_parameters())
    norms = _norms_of_their_own(probe, inputs)
    dense = _used(probe, inputs)
    found: dict[str, Branch] = {}
    for dimension in groups.dimensions:
        writers = list(dict.fromkeys(w.rpartition(".")[0] for w in dimension.writers))
        for name in writers[1:]:
            owners = [name, *norms.get(name, ())]
            zeroed = tuple(n for n in parameters if n.rpartition(".")[0] in owners)
            used = _used(without(probe, zeroed), inputs)
            within = frozenset(dense - used) | set(zeroed)
            first = [n for n in parameters if n.rpartition(".")[0] == writers[0]]
            if zeroed and not within & set(first):
                found[name] = Branch(name, zeroed, within)
    outermost = [
        b
        for b in found.values()
        if not any(set(b.zeroed) < other.within for other in found.values() if other is not b)
    ]
    if not outermost:
        return ()
    bare = simplify(without(probe, [n for b in outermost for n in b.zeroed]), example)
    left = {name for name, _ in bare.named_parameters()}
    return tuple(b for b in outermost if not b.within & left)


def _without_zeros(model: nn.Module) -> nn.Module:
    """A copy without tensors of zeros: layers that start at zero would hide what is before them."""
    probe = copied(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in probe.parameters():
            if parameter.is_floating_point() and not bool(parameter.any()):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return probe


def without(model: nn.Module, zeroed: Iterable[str]) -> nn.Module:
    """A copy of a network with some parameters at zero."""
    changed = copied(model)
    parameters = dict(changed.named_parameters())
    with torch.no_grad():
        for name in zeroed:
            parameters[name].zero_()
    return changed


def _norms_of_their_own(model: nn.Module, inputs: Inputs) -> dict[str, list[str]]:
    """Name of a layer -> the BatchNorms that read its output itself, with nothing in between."""
    made: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that no id is used again
    found: dict[str, list[str]] = {}

    def remember(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: object) -> None:
            given = (*args, *kwargs.values())
            if is_batchnorm(module) and given and id(given[0]) in made:
                found.setdefault(made[id(given[0])][0], []).append(name)
            if isinstance(output, Tensor):
                made[id(output)] = (name, output)

        return module.register_forward_hook(hook, with_kwargs=True)

    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]
    handles = [remember(name, module) for name, module in leaves]
    try:
        with evaluation(model):
            inputs.map(torch.clone).call(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _used(model: nn.Module, inputs: Inputs) -> set[str]:
    """Names of the parameters that the outputs depend on, to first order."""
    parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
    generator = torch.Generator().manual_seed(0)
    with evaluation_mode(model), requiring_gradients(parameters.values()):
        outputs = float_tensors(inputs.map(torch.clone).call(model))
        # Random directions: in others, such as the sum of a softmax, derivatives can cancel.
        total = sum(
            (o * torch.randn(o.shape, generator=generator).to(o)).sum()
            for o in outputs
            if o.requires_grad
        )
        if not isinstance(total, Tensor):
            return set()
        grads = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {
        name
        for name, grad in zip(parameters, grads, strict=True)
        if grad is not None and bool(grad.any())
    }
