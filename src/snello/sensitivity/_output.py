"""Output sensitivity: the sensitivity of the outputs to a weight."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import torch
from torch import Tensor, nn

from snello.errors import ConfigError
from snello.neurons import LayerFilter, plain_layers, qualified, select_layers, weighted_layers
from snello.processes import Group, rank_and_size, sum_over_processes
from snello.wrappers import unwrapped

from ._decay import check_some_decay, insensitivity
from ._observed import Observed, check_reached
from ._outputs import class_scores, generator, target_scores, wide

Kind = Literal["unspecific", "specific"]


class OutputSensitivity(Observed):
    r"""Sensitivity of the outputs to a weight, the method that preceded LOBSTER and SeReNe.

    The unspecific kind averages over all outputs; the specific one uses the output of the target
    class $k^\star$ alone:

    $$S(w) = \frac{1}{C} \sum_{k=1}^{C} \left| \frac{\partial y_k}{\partial w} \right|
    \qquad S(w) = \left| \frac{\partial y_{k^\star}}{\partial w} \right|$$

    with $y_k$ averaged over the batch, as LOBSTER's loss is. The unspecific sum costs C full
    backward passes; `"sampled"` draws one class per observation instead, whose expectation is the
    mean over all classes.

    Args:
        model: the weights of its Linear and convolution layers decay.
        lmbda: strength of the decay per step.
        kind: "unspecific", or "specific" (then
            [`observe`][snello.sensitivity.OutputSensitivity.observe] needs the targets).
        estimate: "sampled" or "full"; ignored for the specific kind.
        every: observe only every n-th call; in between, the latest sensitivity is used.
        class_dim: the dimension of the classes in the outputs; see
            [`SeReNe`][snello.sensitivity.SeReNe].
        ignore_index: positions with this target are left out.
        seed: seed of the drawn classes, together with the number of the observation.
        exclude: layers that do not decay: their names or types, or a function of name and module.
        group: the processes that share a batch; default: all, where torch.distributed is
            initialised.

    Attributes:
        left_alone: layer name -> why it does not decay: its weight is computed.

    Raises:
        ConfigError: for numbers outside their range, and a model without a layer that could decay.

    Source: Tartaglione et al., "Learning sparse neural networks via sensitivity-driven
    regularization", NeurIPS 2018, eq. 4-6. The sampled estimate is snello's.
    """

    def __init__(
        self,
        model: nn.Module,
        lmbda: float = 1e-4,
        *,
        kind: Kind = "unspecific",
        estimate: Literal["sampled", "full"] = "sampled",
        every: int = 4,
        class_dim: int = 1,
        ignore_index: int = -100,
        seed: int = 0,
        exclude: LayerFilter = (),
        group: Group = None,
    ) -> None:
        super().__init__(lmbda, every, seed, group)
        if kind not in ("unspecific", "specific") or estimate not in ("sampled", "full"):
            raise ConfigError(
                f"kind is 'unspecific' or 'specific', estimate 'sampled' or 'full', not {kind!r}, {estimate!r}"
            )
        model = unwrapped(model, "OutputSensitivity")
        candidates = weighted_layers(model)
        check_some_decay(candidates, model, "OutputSensitivity")
        chosen = select_layers(candidates, exclude, "OutputSensitivity(exclude=...)")
        layers, self.left_alone = plain_layers(chosen)
        # By identity: a tied weight decays once.
        unique = {id(m.weight): (qualified(name, "weight"), m.weight) for name, m in layers.items()}
        self._weights: dict[str, Tensor] = dict(unique.values())  # type: ignore[arg-type]
        self.kind, self.estimate = kind, estimate
        self._class_dim, self._ignore_index = class_dim, ignore_index
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(weight.shape) for name, weight in self._weights.items()}

    def observe(self, outputs: Tensor, targets: Tensor | None = None) -> None:
        """Measure the sensitivities from the outputs, before `loss.backward()`.

        Several observations before one [`step`][snello.sensitivity.OutputSensitivity.step]
        (gradient accumulation) are averaged.

        Args:
            outputs: shape (B, C), (B, C, ...) or (B, ..., C), attached to their graph, which is
                kept.
            targets: class indices (B,) or one per position; needed by the specific kind, ignored
                by the unspecific one.

        Raises:
            ConfigError: for outputs or targets of another shape, or without a graph.
        """
        if self._due:
            scores = class_scores(outputs, self._class_dim, "OutputSensitivity.observe")
            if self.kind == "specific":
                if targets is None:
                    raise ConfigError(
                        "the specific kind needs the targets: call observe(outputs, targets)"
                    )
                picked = [target_scores(outputs, targets, self._class_dim, self._ignore_index)]
            else:
                picked = [scores[:, k] for k in self._classes(scores.shape[1])]
            self._measure(picked)
        self._calls += 1

    def _classes(self, classes: int) -> list[int]:
        if self.estimate == "full":
            return list(range(classes))
        return [int(torch.randint(classes, (), generator=generator(self.seed, self._calls)))]

    def _measure(self, picked: list[Tensor]) -> None:
        """Mean magnitude of the weights' gradients over the picked outputs, on all processes."""
        weights = {name: w for name, w in self._weights.items() if w.requires_grad}
        if not weights:
            return  # all are frozen
        size = rank_and_size(self._group)[1]
        for score in picked:
            gradients = torch.autograd.grad(
                score.mean(), list(weights.values()), retain_graph=True, allow_unused=True
            )
            check_reached(gradients, "OutputSensitivity")
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                whole = torch.zeros_like(weight) if gradient is None else gradient
                # Averaged over the processes before the magnitude is taken: the gradient of the
                # joined batch.
                mean = (sum_over_processes(whole, self._group) / size).abs()
                self._add(name, mean.to(wide(mean)) / len(picked))
        self._counts.update(weights.keys())

    def _add(self, name: str, part: Tensor) -> None:
        self._sums[name] = self._sums[name] + part if name in self._sums else part

    def sensitivity(self) -> dict[str, Tensor]:
        """Parameter name -> sensitivity, in the shape of the weight, in single precision at least.

        It is the mean of the observations since the last step.
        """
        if not self._sums:
            return self._latest
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def _weights_and_insensitivities(self) -> tuple[list[Tensor], list[Tensor]]:
        latest = self._finish()
        # A weight may have been frozen after it was observed.
        names = [name for name in latest if self._weights[name].requires_grad]
        weights = [self._weights[name] for name in names]
        shares = insensitivity([latest[name] for name in names]) if names else []
        return weights, [share.to(w) for w, share in zip(weights, shares, strict=True)]
