"""The note of a study's folder: the settings with which it may go on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from snello.errors import ConfigError
from snello.files import read_json_object, write_text
from snello.lab.recipes import Recipe
from snello.lab.training._folder import differences
from snello.search.tune import Space

from ._settings import TuneSettings

NOTE = "tune.json"


def noted(recipe: Recipe, settings: TuneSettings, space: Space) -> dict[str, Any]:
    """All settings that decide about the trials of a study, as JSON returns them."""
    plain = {**asdict(recipe), "methods": [settings.method]}
    # Coding and timing have no influence on a trial, and a machine may lack the first one's device.
    recipe_part = {k: v for k, v in plain.items() if k not in ("ship", "device", "log")}
    asked: dict[str, Any] = json.loads(
        json.dumps(
            {
                "recipe": recipe_part,
                "space": {one.name: {"kind": type(one).__name__, **asdict(one)} for one in space},
                "minimise": settings.cost,
                "share": settings.share,
                **asdict(settings.goal),
                **asdict(settings.choices),
            }
        )
    )
    return asked


def study_name(label: str, asked: dict[str, Any]) -> str:
    """Name of a study: settings that differ never share one, also in a shared database."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return f"{label}-{digest[:10]}"


def check_same_study(folder: Path, asked: dict[str, Any]) -> None:
    """Write the note of a folder, or compare it.

    Raises:
        ConfigError: if the folder holds a study with other settings; the message names them.
        OutputError: if the note cannot be written.
    """
    path = folder / NOTE
    if not path.is_file():
        write_text(path, json.dumps(asked, indent=1))
        return
    there = read_json_object(path, "choose another --out, or remove the folder and start again")
    if found := differences(there, asked):
        raise ConfigError(
            f"{folder} holds a study with other settings: {found}: choose another --out, or go on with "
            "the study's own settings; --trials, --within, --seeds and --storage may differ"
        )
