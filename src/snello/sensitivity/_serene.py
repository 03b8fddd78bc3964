"""SeReNe: the sensitivity of the outputs to a neuron."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from snello.errors import ConfigError
from snello.neurons import head, neuron_count, select_layers, spread, weighted_layers

from ._decay import Sensitivity, insensitivity


class SeReNe(Sensitivity):
    r"""Sensitivity-based regularisation of neurons, by an unbiased one-pass estimate.

    .. math:: S_{n,i} = \frac{1}{C} \sum_{k=1}^{C} \left| \frac{\partial y_k}{\partial p_{n,i}} \right|

    with :math:`p_{n,i}` the pre-activation of neuron i of layer n, averaged over the batch and over spatial
    positions. The sum over classes would cost C backward passes per step. Instead one class :math:`k_b` is
    drawn uniformly for each example, and one pass yields
    :math:`\left| \partial / \partial p \sum_b y_{b,k_b} \right|`, whose expectation is the sum (exactly so
    where examples do not mix, that is without batch statistics). The pass computes gradients of activations
    only, none of weights.

    Args:
        model: the neurons of its Linear and convolution layers decay: every weight that feeds them, not the
            bias.
        lmbda: strength of the decay per step.
        every: observe on every n-th call only; in between, the latest sensitivity stands.
        seed: seed of the generator that draws the classes; it is independent of torch's global one.
        exclude: names of layers that do not decay. The default is the head alone: the sensitivity of an
            output to itself is 1/C whatever the data say, so decaying by it would tell nothing.

    Source: Tartaglione et al., "SeReNe: Sensitivity-based regularization of neurons for structured sparsity
    in neural networks", IEEE TNNLS (2021), eq. 2. The sampled estimate is snello's.
    """

    def __init__(
        self,
        model: nn.Module,
        lmbda: float = 1e-4,
        *,
        every: int = 1,
        seed: int = 0,
        exclude: Iterable[str] | None = None,
    ) -> None:
        super().__init__(lmbda)
        if every < 1:
            raise ConfigError(f"every counts steps between observations: at least 1, not {every}")
        default = [name] if (name := head(model)) is not None else []
        self._layers = select_layers(
            weighted_layers(model), default if exclude is None else exclude, "SeReNe(exclude=...)"
        )
        self.every = every
        self._calls = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._edges: dict[str, list[GradientEdge]] = {}
        self._pending: list[dict[str, Tensor]] = []
        self._latest: dict[str, Tensor] = {}
        self._handles = [model.register_forward_pre_hook(self._forget_graph)]
        self._handles += [m.register_forward_hook(self._remember(name)) for name, m in self._layers.items()]

    def _forget_graph(self, *_: Any) -> None:
        self._edges = {}

    def _remember(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            # The edge, not the tensor: an in-place activation that follows would make the tensor its own.
            if module.training and output.requires_grad and self._calls % self.every == 0:
                self._edges.setdefault(name, []).append(get_gradient_edge(output))

        return hook

    def observe(self, outputs: Tensor) -> None:
        """Estimate the sensitivities from the outputs of a training forward, before ``loss.backward()``.

        Several observations before one :meth:`step` (gradient accumulation) are averaged.

        Args:
            outputs: the network's outputs, shape (B, C), attached to their graph. The graph is kept.

        Raises:
            ConfigError: for outputs of another shape, or without a graph.
        """
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        if outputs.dim() != 2 or not outputs.requires_grad:
            raise ConfigError(
                "SeReNe.observe needs the outputs (B, C) of a training forward, with their graph; "
                f"got shape {tuple(outputs.shape)}, requires_grad={outputs.requires_grad}"
            )
        owners = [(name, edge) for name, edges in self._edges.items() for edge in edges]
        if owners:
            drawn = self._draw(outputs)
            gradients = torch.autograd.grad(
                drawn.sum(), [edge for _, edge in owners], retain_graph=True, allow_unused=True
            )
            self._pending.append(self._per_neuron([name for name, _ in owners], gradients))
        self._edges = {}

    def _draw(self, outputs: Tensor) -> Tensor:
        """One output per example, its class drawn uniformly: shape (B, 1)."""
        batch, classes = outputs.shape
        drawn = torch.randint(classes, (batch, 1), generator=self._generator)
        return outputs.gather(1, drawn.to(outputs.device))

    def _per_neuron(self, names: list[str], gradients: tuple[Tensor | None, ...]) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for name, gradient in zip(names, gradients, strict=True):
            module = self._layers[name]
            weight: Tensor = module.weight  # type: ignore[assignment]
            if gradient is None:  # the layer was called, but this call does not reach the outputs
                value = weight.new_zeros(neuron_count(module))
            else:
                value = _mean_magnitude(module, gradient).to(weight.dtype)
            # A layer called more than once is one neuron seen at more positions.
            sums[name] = sums[name] + value / names.count(name) if name in sums else value / names.count(name)
        return sums

    def sensitivity(self) -> dict[str, Tensor]:
        """Layer name -> sensitivity, shape ``(neurons,)``: the mean of the observations since the last step."""
        if not self._pending:
            return self._latest
        names = self._pending[0].keys()
        return {name: torch.stack([p[name] for p in self._pending]).mean(0) for name in names}

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        self._latest, self._pending = self.sensitivity(), []
        bounded = insensitivity(list(self._latest.values()))
        layers = [self._layers[name] for name in self._latest]
        shares = [spread(module, share) for module, share in zip(layers, bounded, strict=True)]
        return [module.weight for module in layers], shares  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": self._generator.get_state(),
            "calls": self._calls,
            "latest": dict(self._latest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._generator.set_state(state["generator"].cpu())
        self._calls, self._latest = int(state["calls"]), dict(state["latest"])

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._edges = {}


def _mean_magnitude(module: nn.Module, gradient: Tensor) -> Tensor:
    """Mean of ``|gradient|`` over everything but the neurons: the last axis of Linear, the first after B else."""
    magnitude = gradient.abs()
    axis = magnitude.dim() - 1 if isinstance(module, nn.Linear) else 1
    return magnitude.mean(dim=[d for d in range(magnitude.dim()) if d != axis])
