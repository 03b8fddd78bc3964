"""Work of the processes of a torchrun in tests: train the quick ResNet-32, and note what each of
them decided.

Called as ``torchrun ... torchrun_samples.py DATA OUT``. Imported, it gives the same recipes to one
process.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seams.datasets import cifar
from seams.pruning import quality
from snello.integrations.lightning import SelectiveUpdateCallback, SensitivityPruning
from snello.lab.training import Recipe, load_recipe, train
from snello.neurons import head
from snello.store import build

COUNTS = (80, 20)
QUICK = ("serene+neq",)
"""Masks with frozen neurons; the other methods run behind the marker."""
REST = ("baseline", "lobster", "serene", "neq")
NOTED = {
    "lobster": ("masks",),
    "serene": ("masks",),
    "neq": ("frozen",),
    "serene+neq": ("masks", "frozen"),
}
"""Method -> kinds of its decisions that are noted."""
KILLED = "killed"


def without_batch_statistics() -> nn.Module:
    """ResNet-32 with GroupNorm for BatchNorm: what an example contributes does not depend on the
    others.
    """
    model = build("resnet-32")
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.GroupNorm(4, module.num_features))
    with torch.no_grad():  # losses of about log(10), where 1e-5 is more than rounding
        model.get_submodule(head(model) or "").weight.mul_(0.1)
    return model


def recipe_of(data: str, *, batch_statistics: bool) -> Recipe:
    """The quick variant of the ResNet-32 recipe; 2 x 10 images in a batch."""
    options = [
        f"--data.root={data}",
        "--device=cpu",
        "--neq.eps=1.0",
        "--serene.finetune=2",
        "--optimizer.lr=0.002",
    ]
    if not batch_statistics:
        options.append("--model.name=torchrun_samples:without_batch_statistics")
    cifar.CIFAR10_COUNTS = COUNTS  # type: ignore[misc]
    quality.MARGIN = -100  # so few images teach nothing, and are to be pruned on nevertheless
    return load_recipe("cifar10_resnet32", options, quick=True)


def _noting(folder: Path) -> None:
    """Let every process write down its masks when a training ends."""
    rank = os.environ["RANK"]
    pruned, held = SensitivityPruning.on_train_end, SelectiveUpdateCallback.on_train_end

    def pruning(self: SensitivityPruning, trainer: Any, module: Any) -> None:
        assert self.pruner is not None
        torch.save((self.pruner.masks, module.model.state_dict()), folder / f"masks-{rank}.pt")
        pruned(self, trainer, module)

    def updating(self: SelectiveUpdateCallback, trainer: Any, module: Any) -> None:
        assert self.neq is not None
        torch.save((self.neq.frozen, module.model.state_dict()), folder / f"frozen-{rank}.pt")
        held(self, trainer, module)

    SensitivityPruning.on_train_end, SelectiveUpdateCallback.on_train_end = pruning, updating  # type: ignore[method-assign]


def _dying_once() -> None:
    """The second process dies in the second epoch, unless it was started again."""
    from snello.lab.training import Classification

    step = Classification.training_step

    def deadly(self: Any, batch: Any, batch_idx: int) -> Any:
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.environ["RANK"] == "1" and self.current_epoch == 1 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, batch_idx)

    Classification.training_step = deadly  # type: ignore[method-assign]


def main(data: str, out: Path, methods: list[str]) -> None:
    torch.set_num_threads(1)
    if out.name == KILLED:
        _dying_once()
        train(recipe_of(data, batch_statistics=False), "serene", out)
        return
    if methods == list(REST):
        train(recipe_of(data, batch_statistics=True), "baseline", out / "with-statistics")
    for method in methods:
        _noting(out)
        train(recipe_of(data, batch_statistics=False), method, out / method)
        for kind in ("masks", "frozen"):
            if (noted := out / f"{kind}-{os.environ['RANK']}.pt").exists():
                noted.rename(out / f"{method}-{noted.name}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
