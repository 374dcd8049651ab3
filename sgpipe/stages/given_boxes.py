"""Boxes that a user gives in place of a detector's: of a COCO instances file, or beside each image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError, first_line
from sgpipe.recipe import Resources
from sgpipe.records import Box, Record
from sgpipe.sources.annotated import ProblemCounts, clip_objects, require_format
from sgpipe.sources.coco import load_coco_instances
from sgpipe.stages.base import Stage
from sgpipe.utils.boxes import clip_box
from sgpipe.utils.console import single_line


class GivenBoxesStage(Stage):
    """Fills `objects` and the size of each image from the entry of an instances file with the same
    file name.

    If several entries share the file name, the one that shares most of the parent folders is used.
    """

    name = "boxes"
    resources = Resources()

    def __init__(self, file: Path) -> None:
        """Read the boxes of an instances file.

        Raises:
            UserError: not an instances file.
        """
        require_format(file, "coco")
        self._file = file
        self._instances = load_coco_instances(file)
        self._ids: dict[str, list[str]] = {}
        for image_id, row in self._instances.position.items():
            for suffix in _path_suffixes(self._instances.file_names[row]):
                self._ids.setdefault(suffix, []).append(image_id)
        self.classes = {name: number for number, name in sorted(self._instances.categories.items())}

    def fill(self, record: Record) -> None:
        suffixes = _path_suffixes(record.file_name)
        known = [suffix for suffix in suffixes if suffix in self._ids]
        ids = self._ids[known[0]] if known else []
        if len(ids) != 1:
            record.fail(self.name, f"{self._file} has {len(ids) or 'no'} images of this name")
            return
        annotated = self._instances.record(
            ids[0], record.dataset, record.split, self._instances.problems
        )
        if not annotated.ok:
            record.fail(self.name, str(annotated.error))
            return
        if annotated.width and annotated.height:
            # Compared with the actual size when the image is opened.
            record.width = annotated.width
            record.height = annotated.height
        record.objects = annotated.objects
        clip_objects(record, ProblemCounts())


class GivenBoxes(NamedTuple):
    """Boxes of one image from a Python user: `corners` are x1, y1, x2, y2 in pixels, `[boxes, 4]`
    float64.
    """

    corners: NDArray[np.float64]
    classes: tuple[str, ...]
    where: str  # of messages: " of image 3"

    def objects(self, width: int, height: int) -> list[Box]:
        """Return the boxes, clipped to the image by at most a pixel.

        Raises:
            UserError: a box is not finite, has no area or is farther outside, or all are within the
                first pixel.
        """
        size = f"the image, which has {width}x{height} pixels"
        if len(self.corners) and self.corners.max() <= 1 < max(width, height):
            raise UserError(
                f"the boxes{self.where} are within the first pixel of {size}: expected pixels, not"
                " shares"
            )
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.classes), start=1)}
        boxes = []
        for index, (name, corners) in enumerate(
            zip(self.classes, self.corners.tolist(), strict=True)
        ):
            left, top, right, bottom = corners
            # false of NaN
            inside = -1 <= left < right <= width + 1 and -1 <= top < bottom <= height + 1
            bbox = (
                clip_box((left, top, right - left, bottom - top), width, height) if inside else None
            )
            if bbox is None:
                box = f"box {index}{self.where} ({left:g}, {top:g}, {right:g}, {bottom:g})"
                raise UserError(
                    f"{box} is not inside {size}: expected x1, y1, x2, y2 with x1 < x2 and y1 < y2"
                )
            boxes.append(Box(name, numbers[name], bbox))
        return boxes


def _parse_corners(boxes: Any, where: str) -> NDArray[np.float64]:
    """Return `[boxes, 4]`.

    Raises:
        UserError: as `parse_boxes`.
    """
    try:
        corners = np.asarray(boxes, dtype=np.float64)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"boxes={where} are not numbers: {first_line(error)}") from None
    if not corners.size:
        return corners.reshape(0, 4)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise UserError(
            f"boxes={where}: expected x1, y1, x2, y2 in pixels of each box, got shape"
            f" {corners.shape}"
        )
    return corners


def parse_boxes(boxes: Any, classes: Any, where: str = "") -> GivenBoxes | None:
    """Boxes as x1, y1, x2, y2 in pixels, anything that NumPy makes `[boxes, 4]` of, and their class
    names; or None.

    Raises:
        UserError: they are not of this shape, or there is not a class name for each box.
    """
    if boxes is None and classes is None:
        return None
    corners = _parse_corners([] if boxes is None else boxes, where)
    names = () if classes is None or isinstance(classes, str) else tuple(classes)
    if len(names) != len(corners) or not all(map(_is_class_name, names)):
        raise UserError(
            f"classes={where}: expected a class name for each of {len(corners)} boxes, got"
            f" {classes!r}"
        )
    return GivenBoxes(corners, names, where)


def _is_class_name(name: object) -> bool:
    return isinstance(name, str) and single_line(name) == name.strip() != ""


def _path_suffixes(name: str) -> list[str]:
    """Return the path, the path without its first folder, and so on down to the bare file name."""
    parts = PurePosixPath(name).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]
