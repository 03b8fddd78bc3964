"""Preprocessing of images and names of classes, stored with the weights as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from snello.errors import ModelError

COLOURS = ("rgb", "bgr", "grey")


@dataclass(frozen=True)
class ImageInput:
    """Preprocessing of a network's images, `(pixels / 255 - mean) / std`, and its classes.

    Attributes:
        mean, std: per channel, with pixels scaled to 0 … 1; one number is valid for all channels.
        colours: order of the channels: "rgb", "bgr" or "grey".
        classes: name of each class, by label; empty if unknown.

    Raises:
        ModelError: for an unknown order, a wrong number of values, values that are not finite, or
            deviations that are not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    colours: str = "rgb"
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        channels = 1 if self.colours == "grey" else 3
        if self.colours not in COLOURS:
            raise ModelError(f"colours={self.colours!r}: choose one of {', '.join(COLOURS)}")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, channels):
            raise ModelError(
                f"mean={self.mean} and std={self.std}: give one number per channel, {channels} for "
                f"{self.colours!r}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ModelError(
                f"mean={self.mean} and std={self.std} must be finite, and deviations positive"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "colours": self.colours,
            "classes": list(self.classes),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImageInput:
        """The inverse of `to_dict`.

        Raises:
            ModelError: for damaged data.
        """
        try:
            mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
            classes = tuple(str(name) for name in data.get("classes", ()))
            return cls(mean, std, str(data["colours"]), classes)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the description of a model's images is damaged: {error!r}"
            ) from error
