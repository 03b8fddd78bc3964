"""The folder of a pruning: the network after each step, and what the steps depend on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from snello.errors import ConfigError
from snello.files import read_json_object, write_text
from snello.processes import rank_and_size
from snello.search.identity import plain
from snello.simplification import SimplificationPlan, apply, plan_of
from snello.store import archives
from snello.wrappers import copied

from ._step import PruningStep

TABLE = "steps.json"


@dataclass(frozen=True)
class Folder:
    """The folder in which the steps are saved, with the settings that they depend on.

    Attributes:
        path: the folder; None: nothing is saved or resumed.
        settings: plain values; a folder with other values is refused.
    """

    path: Path | None
    settings: dict[str, Any]

    def check(self) -> None:
        """Make the folder, and refuse one that another pruning has written.

        Raises:
            ConfigError: with the settings that differ, for settings that are no plain values, and
                for a path that is no folder, or one that cannot be written to.
        """
        if self.path is None:
            return
        plain(self.settings, "prune")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # Before the first step, whose fine-tuning would be lost. Without a name that another
            # process could use at the same time.
            tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise ConfigError(
                f"prune: cannot make the folder {self.path}, or write to it: {error.strerror}"
            ) from error
        if (self.path / TABLE).is_file():
            self._check_settings(self._table()["settings"])

    def _check_settings(self, known: dict[str, Any]) -> None:
        ours = plain(self.settings, "prune")
        # Folders of earlier versions have fewer settings.
        odd = [name for name in known if known[name] != ours.get(name)]
        if not odd:
            return
        if odd == ["weights"]:
            what = "it was made from another model, or other weights"
        else:
            what = "; ".join(
                f"{name} {_short(there)} there, {_short(here)} here"
                for name, there, here in _differing(known, ours)
                if name != "weights"
            )
        raise ConfigError(
            f"{self.path} holds a pruning with other settings ({what}): choose another folder, or "
            "remove it"
        )

    def _table(self) -> dict[str, Any]:
        assert self.path is not None
        file, remedy = self.path / TABLE, "remove the folder to start again"
        table = read_json_object(file, remedy)
        try:
            steps = [
                PruningStep(**{**entry, "branches": tuple(entry.get("branches", ()))})
                for entry in table["steps"]
            ]
            return {"settings": dict(table["settings"]), "steps": steps}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{file} is damaged, or was written by another version: {remedy}"
            ) from error

    def taken(self) -> list[PruningStep]:
        """The table of the steps that were saved; empty without one."""
        if self.path is None or not (self.path / TABLE).is_file():
            return []
        steps: list[PruningStep] = self._table()["steps"]
        return steps

    def network(self, model: nn.Module, step: int) -> nn.Module:
        """The network after a saved step.

        Args:
            model: the dense network; a copy of it is the network after step 0.
            step: number of the step.
        """
        fresh = copied(model)
        if self.path is None or step == 0:
            return fresh
        content = archives.load(self.path / f"step-{step}.pt")
        lean = apply(SimplificationPlan.from_json(content["plan"]), fresh)
        lean.load_state_dict(content["state_dict"])
        return lean

    def keep(self, model: nn.Module, taken: Sequence[PruningStep]) -> None:
        """Write the network after a step, then the table; only the process of rank 0 does."""
        if self.path is None or rank_and_size()[0]:  # the processes share the folder
            return
        plan = plan_of(model)
        assert plan is not None
        content = {"plan": plan.to_json(), "state_dict": model.state_dict()}
        archives.save(self.path / f"step-{taken[-1].step}.pt", content)
        table = {"settings": self.settings, "steps": [asdict(step) for step in taken]}
        write_text(self.path / TABLE, json.dumps(table, indent=1))


def _differing(
    known: dict[str, Any], ours: dict[str, Any], of: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Names of settings that differ, with both values; of nested ones, the innermost."""
    for name, value in known.items():
        here = ours.get(name)
        if isinstance(value, dict) and isinstance(here, dict):
            yield from _differing(value, here, f"{of}{name}.")
        elif value != here:
            yield f"{of}{name}", value, here


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
