"""COCO 2017 as semantic segmentation into the classes of Pascal VOC, as in torchvision.

As in https://github.com/pytorch/vision/blob/main/references/segmentation/coco_utils.py, other
categories are background, pixels where instances overlap are ignored, and training images with 1000
or fewer annotated pixels are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snello.errors import DataError, require
from snello.files import read_json_object

from ._folders import fixed_order
from ._places import Request, missing
from ._texts import Texts
from ._types import IGNORED, RawStream, StreamedImages

VOC = {
    "background": 0, "aeroplane": 5, "bicycle": 2, "bird": 16, "boat": 9, "bottle": 44, "bus": 6, "car": 3,
    "cat": 17, "chair": 62, "cow": 21, "diningtable": 67, "dog": 18, "horse": 19, "motorbike": 4, "person": 1,
    "pottedplant": 64, "sheep": 20, "sofa": 63, "train": 7, "tvmonitor": 72,
}  # fmt: skip
"""Pascal VOC class, in the order of labels -> COCO category."""

SMALLEST_AREA = 1000
"""A training image must have more annotated pixels than this."""

_LABELS = {category: label for label, category in enumerate(VOC.values()) if label}


def read_coco(request: Request) -> RawStream:
    """Read `train2017` and `val2017` with their annotations; `val2017` is the test part.

    Raises:
        DataError: if the dataset is missing or its annotations cannot be read.
        MissingExtraError: without pycocotools.
    """
    _tools()
    places = [root / name for root in request.roots for name in ("coco", "")]
    for place in places:
        if all(_annotations(place, part).is_file() for part in ("train", "val")):
            train, test = _part(place, "train"), _part(place, "val")
            return RawStream(train, test, tuple(VOC), str(place), "segmentation")
    raise missing(
        "COCO (folders train2017, val2017 and annotations/instances_{train,val}2017.json)",
        places,
        request.roots[0],
        "get train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org and unpack "
        "them there",
    )


def _tools() -> Any:
    return require("pycocotools.mask", "coco", "drawing the masks of COCO")


def _annotations(place: Path, part: str) -> Path:
    return place / "annotations" / f"instances_{part}2017.json"


def _part(place: Path, part: str) -> StreamedImages:
    file, folder = _annotations(place, part), place / f"{part}2017"
    content = read_json_object(file, "unpack it again", DataError)
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        objects = _by_image(content["annotations"], names)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{file.absolute()} is not a list of COCO instances: {type(error).__name__} {error}; unpack it again"
        ) from error
    chosen = [i for i in sorted(names) if part != "train" or objects[i].area > SMALLEST_AREA]
    if not chosen:
        raise DataError(
            f"{file.absolute()} has no image with an object of the {len(VOC)} VOC classes"
        )
    files = Texts(str(folder / names[i]) for i in chosen)
    masks = CocoMasks(
        files, Texts(json.dumps(objects[i].shapes, separators=(",", ":")) for i in chosen)
    )
    order = fixed_order(len(chosen))
    return StreamedImages(files, masks).subset(order)


@dataclass
class _Objects:
    """Objects of VOC classes in one image: total number of pixels, and (label, outline) of each."""

    area: float
    shapes: list[tuple[int, Any]]


def _by_image(annotations: Iterable[dict[str, Any]], images: dict[int, str]) -> dict[int, _Objects]:
    objects = {image: _Objects(0.0, []) for image in images}
    for annotation in annotations:
        label = _LABELS.get(annotation["category_id"])
        if label is not None:
            there = objects[annotation["image_id"]]
            there.area += annotation["area"]
            there.shapes.append((label, annotation["segmentation"]))
    return objects


@dataclass(frozen=True)
class CocoMasks:
    """Segmentation masks drawn on access from COCO's outlines.

    Attributes:
        files: paths of the images, for error messages.
        objects: JSON list of (label, COCO segmentation) for each image.
    """

    files: Texts
    objects: Texts

    def __len__(self) -> int:
        return len(self.objects)

    def subset(self, indices: Tensor) -> CocoMasks:
        """The masks at the given indices, in that order."""
        return CocoMasks(self.files.subset(indices), self.objects.subset(indices))

    def mask(self, index: int, height: int, width: int) -> Tensor:
        """Draw the mask of an image: uint8, shape `(height, width)`, 255 where instances overlap.

        Raises:
            DataError: for an outline that cannot be drawn.
        """
        classes = torch.zeros(height, width, dtype=torch.uint8)
        taken = torch.zeros(height, width, dtype=torch.bool)
        for label, segmentation in json.loads(self.objects[index]):
            try:
                covered = _covered(segmentation, height, width)
            except Exception as error:  # pycocotools raises various exceptions for a bad outline
                raise DataError(
                    f"{self.files[index]}: an object of class {list(VOC)[label]!r} has an outline that cannot be "
                    f"drawn: {error}; correct or remove its annotation"
                ) from error
            classes[covered & ~taken], classes[covered & taken] = label, IGNORED
            taken |= covered
        return classes


def _covered(segmentation: Any, height: int, width: int) -> Tensor:
    """Mask of one instance from polygons or run-length encoding: boolean, `(height, width)`."""
    tools = _tools()
    coded = isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list)
    runs = segmentation if coded else tools.frPyObjects(segmentation, height, width)
    drawn: Tensor = torch.from_numpy(tools.decode(runs)) != 0
    return drawn.reshape(height, width, -1).any(dim=2)
