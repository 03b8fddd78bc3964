"""SeReNe: the sensitivity of the outputs to a neuron."""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from snello.errors import ConfigError, check_count
from snello.neurons import (
    LayerFilter,
    head,
    neuron_count,
    plain_layers,
    select_layers,
    spread,
    weighted_layers,
)
from snello.processes import Group, rank_and_size, sum_over_processes
from snello.wrappers import OwnHook, check_one_device, forget_compiled, unwrapped

from ._decay import check_some_decay, insensitivity
from ._estimators import ESTIMATORS, Tap
from ._observed import Observed
from ._outputs import class_scores, draw_classes
from ._replay import Replay

Estimate = Literal["sampled", "full", "lower-bound", "local"]


class SeReNe(Observed):
    r"""Sensitivity-based regularisation of neurons.

    $$S_{n,i} = \frac{1}{C} \sum_{k=1}^{C} \left| \frac{\partial y_k}{\partial p_{n,i}} \right|$$

    with $p_{n,i}$ the pre-activation of neuron i of layer n, averaged over the batch and over
    positions. There are four estimates of it:

    `"sampled"` (the default) draws one class $k_b$ uniformly for each example; one pass
    yields $\left| \partial / \partial p \sum_b y_{b,k_b} \right|$, whose expectation is the
    sum (exactly, if the examples of a batch are independent, without batch statistics). The pass
    computes only gradients of activations, not of weights.

    `"full"` is the definition, at C such passes; several classes are vectorised into one pass.

    `"lower-bound"` swaps sum and magnitude, $\frac{1}{C} |\sum_k \partial y_k / \partial
    p|$: one pass, no randomness, never above the sum.

    `"local"` needs no pass: S = 0 if the mean pre-activation of a neuron is not positive, else
    S = 1. It is meant for ReLU.

    Args:
        model: the neurons of its Linear and convolution layers decay: every weight that feeds them,
            not the bias. The model may be wrapped in `DistributedDataParallel` or
            `torch.compile`, and may have run before.
        lmbda: strength of the decay per step.
        estimate: one of the four above.
        every: observe only every n-th call; in between, the latest sensitivity is used. The
            estimate is unbiased for the step of the observation, but the variance of the
            accumulated decay is n times that of `every=1`, because each draw is used n times.
        examples: observe only this many examples of a batch, in a second forward in evaluation
            mode; the variance grows as `batch / examples`. None: all of them, in the forward of
            the training step.
        class_dim: the dimension of the classes in the outputs: 1 for (B, C) and (B, C, H, W), -1
            for tokens (B, T, C). Of an output at every position, the mean over positions is used.
        classes_per_pass: number of classes that `"full"` vectorises into one pass, with
            proportional memory; the other estimates ignore it.
        seed: seed of the drawn classes, together with the number of the observation; torch's global
            generator is not used.
        exclude: layers that do not decay: their names or types, or a function of name and module.
            The default is the head alone, because the sensitivity of an output to itself is always
            1/C.
        group: the processes that share a batch; default: all, where torch.distributed is
            initialised. All must observe equally often, with equally many examples.

    Attributes:
        left_alone: layer name -> why it does not decay: its weight is computed.

    Raises:
        ConfigError: for numbers outside their range, sharded parameters, `DataParallel` over
            several devices, and a model without a layer that could decay.

    Source: Tartaglione et al., "SeReNe: Sensitivity-based regularization of neurons for structured
    sparsity in neural networks", IEEE TNNLS (2021), eq. 2-9. The sampled estimate is snello's.
    """

    def __init__(
        self,
        model: nn.Module,
        lmbda: float = 1e-4,
        *,
        estimate: Estimate = "sampled",
        every: int = 4,
        examples: int | None = None,
        class_dim: int = 1,
        classes_per_pass: int = 1,
        seed: int = 0,
        exclude: LayerFilter | None = None,
        group: Group = None,
    ) -> None:
        super().__init__(lmbda, every, seed, group)
        if estimate not in ESTIMATORS:
            raise ConfigError(f"estimate is one of {', '.join(ESTIMATORS)}, not {estimate!r}")
        check_count("examples", 1 if examples is None else examples)
        check_count("classes_per_pass", classes_per_pass)
        given, model = model, unwrapped(model, "SeReNe")
        check_one_device(given, "SeReNe")
        default = [name] if (name := head(model)) is not None else []
        candidates = weighted_layers(model)
        layers = select_layers(
            candidates, default if exclude is None else exclude, "SeReNe(exclude=...)"
        )
        check_some_decay(layers if exclude is None else candidates, model, "SeReNe")
        self._layers, self.left_alone = plain_layers(layers)
        self._estimator = ESTIMATORS[estimate]
        self._class_dim, self._chunk = class_dim, classes_per_pass
        self._examples, self._warned = examples, False
        self._taps: list[tuple[str, Any]] = []
        self._clear()
        self._hook(model)

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: (neuron_count(module),) for name, module in self._layers.items()}

    def _hook(self, model: nn.Module) -> None:
        """Observe a model from now on."""
        self._model, many = model, self._examples
        self._replay = None if many is None else Replay(model, many, lambda: self._due)
        self._handles = [model.register_forward_pre_hook(OwnHook(self._forget))]
        self._handles += [
            m.register_forward_hook(self._remember(name)) for name, m in self._layers.items()
        ]
        forget_compiled()

    def _forget(self, *_: Any) -> None:
        if torch.is_grad_enabled():  # an evaluation in between is not observed
            self._taps = []

    def _remember(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            listening = self._due if self._replay is None else self._replay.running
            if (
                listening
                and torch.is_grad_enabled()
                and output.numel()  # an expert without tokens was not called
                and (output.requires_grad or not self._estimator.needs_graph)
            ):
                self._taps.append((name, self._estimator.tap(module, output)))

        return OwnHook(hook)

    def observe(self, outputs: Tensor, targets: Tensor | None = None) -> None:
        """Measure the sensitivities, between the forward pass and `loss.backward()`.

        Several observations before one [`step`][snello.sensitivity.SeReNe.step] (gradient
        accumulation) are averaged by their examples.

        Args:
            outputs: the network's outputs, shape (B, C), (B, C, ...) or (B, ..., C), attached to
                their graph. The graph is kept.
            targets: not used.

        Raises:
            ConfigError: for outputs of another shape, or without a graph; with `examples`, for others
                than the scores that the model returns.
        """
        if self._due:
            scores = class_scores(outputs, self._class_dim, "SeReNe.observe")
            if self._replay is not None:
                again = self._replay.run(len(outputs))
                given, scores = scores, class_scores(again, self._class_dim, "SeReNe.observe")
                if scores.shape[1] != given.shape[1]:
                    raise ConfigError(
                        f"SeReNe.observe: outputs of {given.shape[1]} classes, but examples={self._examples} measures "
                        f"the model's scores, of {scores.shape[1]}: observe those, or leave out examples"
                    )
            self._measure(scores)
        self._calls += 1
        self._taps = []

    def _measure(self, scores: Tensor) -> None:
        def draw() -> Tensor:
            return draw_classes(len(scores), scores.shape[1], self.seed, self._calls, self._group)

        # Layers under a checkpoint run again while they are measured, and add further taps.
        observed, self._taps = self._taps, []
        if not observed:
            return self._warn()
        taps: list[Tap] = [(self._layers[name], tap) for name, tap in observed]
        values = self._estimator.measure(scores, taps, draw, self._chunk)
        self._add([name for name, _ in observed], values, len(scores))

    def _warn(self) -> None:
        """Warn once that nothing is observed, unless there is nothing that could decay."""
        if not self._warned and any(m.weight.requires_grad for m in self._layers.values()):
            warnings.warn(
                "SeReNe.observe: no layer ran with gradients since the last observation, so none decays: "
                "observe after each forward pass, and checkpoint layers with use_reentrant=False",
                stacklevel=4,
            )
            self._warned = True

    def _add(self, names: list[str], values: list[Tensor], batch: int) -> None:
        """Add one observation to the sums of every layer, over all processes."""
        parts: dict[str, Tensor] = {}
        for name, value in zip(names, values, strict=True):
            # Further calls of a layer count as further positions of the same neurons.
            part = value * (batch / names.count(name))
            parts[name] = parts[name] + part if name in parts else part
        # Sums and counts of all layers in one tensor: a single reduction.
        joined = torch.cat([self._part(parts, name, values[0], batch) for name in self._layers])
        sum_over_processes(joined, self._group)
        # A single process knows the counts without waiting for the device.
        alone = rank_and_size(self._group)[1] == 1
        sizes = [size for m in self._layers.values() for size in (neuron_count(m), 1)]
        pieces = iter(joined.split(sizes))  # type: ignore[no-untyped-call]
        for name in self._layers:
            total, count = next(pieces), next(pieces)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            examples = (batch if name in parts else 0) if alone else float(count)
            self._counts[name] = self._counts.get(name, 0.0) + examples

    def _part(self, parts: dict[str, Tensor], name: str, like: Tensor, batch: int) -> Tensor:
        """The sum of one layer followed by the number of its examples: shape (neurons + 1,)."""
        if name in parts:
            return torch.cat([parts[name].to(like), like.new_full((1,), batch)])
        return like.new_zeros(neuron_count(self._layers[name]) + 1)

    def sensitivity(self) -> dict[str, Tensor]:
        """Layer name -> sensitivity, shape `(neurons,)`, in single precision at least.

        It is the mean of the observations since the last step. Layers that were not called are
        missing.
        """
        if not self._sums:
            return self._latest
        means = {
            n: total / self._counts[n] for n, total in self._sums.items() if self._counts[n] > 0
        }
        return {name: self._estimator.finish(mean) for name, mean in means.items()}

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        latest = self._finish()
        if not latest:
            return [], []  # no layer was called
        shares: dict[int, tuple[Tensor, Tensor]] = {}
        for name, share in zip(latest, insensitivity(list(latest.values())), strict=True):
            module = self._layers[name]
            weight: Tensor = module.weight  # type: ignore[assignment]
            if not weight.requires_grad:  # frozen by the user
                continue
            spread_share = spread(module, share.to(weight))
            if id(weight) in shares:  # tied: it decays once, by the smaller share of its layers
                spread_share = torch.minimum(shares[id(weight)][1], spread_share)
            shares[id(weight)] = (weight, spread_share)
        return [w for w, _ in shares.values()], [s for _, s in shares.values()]

    _uncopied = frozenset({"_handles", "_replay", "_taps", "_group"})
    """Hooks belong to one model, and a group of processes has no copy."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The method on a copy of the model; copy both in one `deepcopy`."""
        twin = super().__deepcopy__(memo)
        twin._taps = []
        twin._hook(twin._model)
        return twin

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._replay is not None:
            self._replay.remove()
        self._taps = []
        forget_compiled()
