"""FLOPs of a backward pass, in the paper's convention and as executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_leaves

from snello.errors import ConfigError, ModelError
from snello.flops import flop_counter, layer_macs
from snello.graph import Example, Inputs
from snello.neurons import neuron_layers, weighted_layers

from ._gradients import input_gradients_only
from ._probe import Probe
from ._uses import ParameterUses, WeightUse, WeightUses, in_projections


@dataclass(frozen=True)
class ForwardUse:
    """Use of the layers with neurons in one forward pass.

    Attributes:
        called: names of the layers that are called as modules.
        lent: names of the layers whose weights another module uses, as torchvision's shifted window
            attention does, and never with a bias that is not the layer's.
        order: names of both, in order of their first use.
        macs: layer name -> multiply-accumulates per sample.
        before: parameter's id -> number of layers, the first of `order`, that have run when it is
            used last.
    """

    called: tuple[str, ...]
    lent: tuple[str, ...]
    order: tuple[str, ...]
    macs: dict[str, float]
    before: dict[int, int]


def forward_use(model: nn.Module, probe: Probe) -> ForwardUse:
    """Layers that the probe uses, in order, and their MACs.

    Normalisation layers count 2 per output entry. Products of activations (attention) belong to no
    neuron and are not counted. The input projection of a `MultiheadAttention`, which is not a
    submodule, has the name `in_proj`.
    """
    layers = neuron_layers(model)
    called: dict[str, float] = {}
    used: dict[str, float] = {}
    order: dict[str, None] = {}
    foreign: set[str] = set()

    def count(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        x = inputs[0] if inputs else output  # only used for transposed convolutions
        order[name] = None
        called[name] = called.get(name, 0.0) + layer_macs(layers[name], x, output) / probe.samples

    def count_use(use: WeightUse) -> None:
        order[use.layer] = None
        used[use.layer] = used.get(use.layer, 0.0) + use.macs / probe.samples
        if not use.own:
            foreign.add(use.layer)

    # Called layers are counted by hooks, weights that another module uses by the products.
    uses = ParameterUses(model, order)
    with uses, WeightUses({**weighted_layers(model), **in_projections(model)}, count_use):
        probe.read(layers, count)
    lent = tuple(name for name in used if name not in called and name not in foreign)
    return ForwardUse(tuple(called), lent, tuple(order), used | called, uses.last)


def paper_flops(macs: Mapping[str, float], updated: Mapping[str, float]) -> float:
    """Backward FLOPs per sample as in the tables of the NEq paper.

    Twice the forward MACs of each layer times its share of updated neurons. A backward pass has a
    second product per layer, the input gradient, which freezing does not skip: the true saving is
    about half of this one. See [`step_flops`][snello.equilibrium.step_flops].

    Args:
        macs: layer name -> forward MACs per sample.
        updated: layer name -> share of neurons updated; 1 for layers that are missing.
    """
    return sum(2 * count * updated.get(name, 1.0) for name, count in macs.items())


@dataclass(frozen=True)
class BackwardFlops:
    """FLOPs that one backward pass executes in matrix products and convolutions (2 per MAC).

    Attributes:
        input_gradient: FLOPs that carry the gradient from the loss to the layers.
        weight_gradient: FLOPs that compute the gradients of the weights.
    """

    input_gradient: int
    weight_gradient: int

    @property
    def total(self) -> int:
        """FLOPs of the whole backward pass."""
        return self.input_gradient + self.weight_gradient


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one forward and backward pass in matrix products and convolutions (2 per MAC).

    Attributes:
        forward: FLOPs of the forward pass.
        input_gradient: FLOPs that carry the gradient from the loss to the layers.
        weight_gradient: FLOPs that compute the gradients of the weights.
    """

    forward: int
    input_gradient: int
    weight_gradient: int

    @property
    def backward(self) -> int:
        """FLOPs of the backward pass."""
        return self.input_gradient + self.weight_gradient

    @property
    def total(self) -> int:
        """FLOPs of forward and backward pass."""
        return self.forward + self.backward


def step_flops(
    model: nn.Module,
    inputs: Example,
    loss_fn: Callable[[Any], Tensor] | None = None,
) -> StepFlops:
    """Count the FLOPs that a forward and backward pass execute with the neurons frozen now.

    The count comes from torch's counter. It follows the decisions between dense and sliced weight
    gradients that training has measured so far, and the fixed rule where there is none yet: count
    after one training step on such a batch. The model runs in its present mode; its gradients,
    buffers and the random generators are restored.

    Args:
        model: the model to run.
        inputs: one batch: a tensor, or the model's arguments as a tuple or by name.
        loss_fn: the loss of the model's output; by default the sum of all its floating-point
            tensors.

    Returns:
        The three parts, for the whole batch.

    Raises:
        ConfigError: without `loss_fn`, if the output holds no floating-point tensor.
        ModelError: if nothing in the output requires a gradient.
    """
    with undisturbed(model):
        edges: list[GradientEdge] = []
        with _gradient_edges(model, edges), flop_counter() as counter:
            loss = loss_of(model, inputs, loss_fn)
        parameters = [p for p in model.parameters() if p.requires_grad]
        total = _counted(loss, parameters)
        weighted = {
            id(p) for m in weighted_layers(model).values() for p in m.parameters(recurse=False)
        }
        others = [p for p in parameters if id(p) not in weighted]
        # The rest are gradients of inputs, and of parameters outside layers with weights.
        with input_gradients_only():
            to_inputs = _counted(loss, [*edges, *others])
    return StepFlops(int(counter.get_total_flops()), to_inputs, total - to_inputs)


def backward_flops(
    model: nn.Module,
    inputs: Example,
    loss_fn: Callable[[Any], Tensor] | None = None,
) -> BackwardFlops:
    """The backward part of `step_flops`; same arguments, same errors."""
    counted = step_flops(model, inputs, loss_fn)
    return BackwardFlops(counted.input_gradient, counted.weight_gradient)


def loss_of(
    model: nn.Module, inputs: Example, loss_fn: Callable[[Any], Tensor] | None = None
) -> Tensor:
    """The loss of the model's output, by default the sum of its floating-point tensors.

    Raises:
        ModelError: if it requires no gradient.
    """
    loss = (loss_fn or _summed)(Inputs.of(inputs).call(model))
    if not loss.requires_grad:
        raise ModelError(
            f"the loss of {type(model).__name__} requires no gradient: nothing to measure"
        )
    return loss


@contextmanager
def _gradient_edges(model: nn.Module, edges: list[GradientEdge]) -> Iterator[None]:
    """Collect the autograd edge of the output of each layer with neurons."""
    # The edge, not the tensor, because an in-place activation changes the tensor's edge.

    def collect(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            edges.append(get_gradient_edge(output))

    handles = [m.register_forward_hook(collect) for m in neuron_layers(model).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counted(loss: Tensor, targets: list[Any]) -> int:
    if not targets:
        return 0
    with flop_counter() as counter:
        torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)
    return int(counter.get_total_flops())


def _summed(output: Any) -> Tensor:
    tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()]
    if not tensors:
        raise ConfigError(
            "loss_fn: the model's output holds no floating-point tensor; give a loss function"
        )
    return torch.stack([t.sum() for t in tensors]).sum()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Start with empty gradients; restore gradients, buffers and generators at the end."""
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
