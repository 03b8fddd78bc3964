"""Networks of the points: surgery, recovery, fine-tuning, and their files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock  # torch depends on it
from torch import nn

from snello.errors import ModelError
from snello.graph import Example
from snello.graph.coupled import Coupling
from snello.neurons import apply_masks, dead_neurons, weighted_layers
from snello.pruning import pin
from snello.pruning.channels import ChannelPlan, Size
from snello.search.output_distance import OutputDistance
from snello.search.prune import Branch, as_plan, without
from snello.simplification import (
    SimplificationPlan,
    apply,
    apply_folds,
    folds_of,
    plan_of,
    simplify,
)
from snello.store import archives
from snello.wrappers import copied

from ._groups import Orders, magnitude_masks, removed_by
from ._point import Point
from ._shapes import branch_name

Fit = Callable[[nn.Module], object]

_NO_SIZE = Size(0, 0)


class Networks:
    """Builds the network of a point, once.

    Args:
        dense: the trained network, which is not changed.
        coupling: its coupling.
        order: indices of every dimension, the least important first.
        example: example inputs.
        distance: estimates BatchNorm statistics; None without calibration inputs.
        fit: fine-tuning; None for none.
        branches: residual branches that points may remove.
        folder: folder of the files; None keeps the networks in memory.
    """

    def __init__(
        self, dense: nn.Module, coupling: Coupling, order: Orders, example: Example,
        distance: OutputDistance | None, fit: Fit | None, branches: Sequence[Branch], folder: Path | None,
    ) -> None:  # fmt: skip
        self._branches = {branch_name(branch): branch for branch in branches}
        self._dense, self._coupling, self._order, self._example = dense, coupling, order, example
        self._distance, self._fit, self._folder = distance, fit, folder
        self._kept: dict[str, nn.Module] = {}

    def __call__(self, point: Point) -> nn.Module:
        """The network of a point, recovered and fine-tuned; built again if its file is missing."""
        if point.dense:
            return copied(self._dense)
        with self._alone(f"network-{point.key}"):
            found = self.stored(f"network-{point.key}")
            if found is None:
                found = self._built(point)
                self.store(f"network-{point.key}", found)
        return found

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Hold a lock: another process may want the same network in another precision."""
        if self._folder is None:
            yield
            return
        with FileLock(self._folder / "locks" / f"{name}.lock"):
            yield

    def cut(self, point: Point) -> nn.Module:
        """The network of a point without recovery, as it is timed."""
        gone = [b for name, b in self._branches.items() if point.widths.get(name, 1) == 0]
        removed = removed_by(point, self._order)
        lean = without(self._dense, [name for branch in gone for name in branch.zeroed])
        if removed:
            plan = ChannelPlan(self._coupling, removed, _NO_SIZE, _NO_SIZE)
            lean = apply(as_plan(self._dense, plan, self._example), lean)
        return simplify(lean, self._example) if gone else lean

    def store(self, name: str, model: nn.Module) -> None:
        """Keep a network: its plan, its folded norms and its tensors."""
        if self._folder is None:
            self._kept[name] = model
            return
        plan = plan_of(model)
        content = {
            "plan": None if plan is None else plan.to_json(),
            "folded_batchnorms": folds_of(model),
            "state_dict": model.state_dict(),
        }
        archives.save(self._folder / f"{name}.pt", content)

    def stored(self, name: str) -> nn.Module | None:
        """A copy of a network that was kept; None if there is none."""
        if self._folder is None:
            return copied(self._kept[name]) if name in self._kept else None
        path = self._folder / f"{name}.pt"
        if not path.is_file():
            return None
        try:
            content = archives.load(path)
        except ModelError as error:
            # Not built again: a random fine-tuning would give another network than was measured.
            raise ModelError(
                f"{error}: remove the folder {self._folder}, or choose another one"
            ) from error
        model = _narrowed(copied(self._dense), content["plan"])
        # A network that was coded before has folded norms already.
        own = folds_of(model)
        folds = {n: layer for n, layer in content["folded_batchnorms"].items() if n not in own}
        model = apply_folds(folds, model)
        model.load_state_dict(content["state_dict"])
        return model

    def _built(self, point: Point) -> nn.Module:
        model = self.cut(point)
        masks = magnitude_masks(model, point.sparsity) if point.sparsity else {}
        apply_masks(model, masks)
        if self._distance is not None:
            model = self._distance.recovered(model)
        held = pin(model, None, masks) if masks else None
        if self._fit is not None:
            device = next((p.device for p in model.parameters()), None)
            self._fit(model)
            model.to(device).eval()  # the fine-tuning may have moved it
        if held is not None:
            held.remove()
        # Zero weights may leave whole neurons dead.
        if any(bool(dead_neurons(layer).any()) for layer in weighted_layers(model).values()):
            model = simplify(model, self._example, keep_class=True)
        return model


def _narrowed(model: nn.Module, text: str | None) -> nn.Module:
    """Apply the plans between a network, which may be lean itself, and one made from it."""
    own, steps = plan_of(model), []
    plan = None if text is None else SimplificationPlan.from_json(text)
    while plan is not None and plan != own:
        steps.append(plan)
        plan = plan.base
    for step in reversed(steps):
        model = apply(step, model)
    return model
