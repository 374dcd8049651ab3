"""COCO instances and captions files, and datasets in the same format.

Objects365 v2 is one of them, with misspelled class names and with images in patch folders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.images import image_exists
from sgpipe.sources.detections import Detections
from sgpipe.utils.console import count


def read_coco(
    annotations: Path | str,
    captions: Path | str | None,
    *,
    dataset: str,
    split: str,
    names: Mapping[int, str] | None = None,
) -> tuple[Detections, dict[str, Any]]:
    """Read an instances file and, if given, a captions file.

    Args:
        names: category names that replace those of the file (Objects365's have spelling errors).

    Returns:
        the detections, and their origin (paths and hashes).

    Raises:
        UserError: a file is missing, cut short, or of another format.
    """
    detections = Detections(dataset, split)
    hashes = {"annotations_sha256": _read_instances(annotations, detections)}
    if names:
        detections.categories.update({k: v for k, v in names.items() if k in detections.categories})
    if captions is not None:
        hashes["captions_sha256"] = _read_captions(captions, detections)
    return detections, {"annotations": str(annotations), "captions": str(captions or ""), **hashes}


def _read_instances(path: Path | str, detections: Detections) -> str:
    readers = {
        "images": detections.add_image,
        "annotations": detections.add_box,
        "categories": detections.add_category,
    }
    stream, seen = JsonStream(path), dict.fromkeys(readers, 0)
    for key, item in stream:
        if key in readers:
            seen[key] += 1
            try:
                readers[key](item)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
    missing = [key for key in ("images", "categories") if not seen[key]]
    if missing:
        raise UserError(
            f"{path} is not a COCO instances file: it has no {' and no '.join(missing)} "
            "(expected the arrays images, annotations and categories)"
        )
    if seen["annotations"] and not detections.boxes:
        raise UserError(
            f"{path} is not a COCO instances file: it has {count(seen['annotations'], 'annotation')}, none with "
            "image_id, category_id and bbox [x, y, width, height]"
        )
    return stream.sha256


def _read_captions(path: Path | str, detections: Detections) -> str:
    stream, captions = JsonStream(path), 0
    for key, item in stream:
        if key == "annotations":
            captions += isinstance(item, dict) and "caption" in item
            detections.add_caption(item)
    if not captions:
        raise UserError(f"{path} is not a COCO captions file: no annotation has image_id and caption")
    if not detections.captions:
        raise UserError(f"{path} has no caption for any annotated image: is it of another split?")
    return stream.sha256


_PROBES = 200  # file names tried to choose a layout


def locate_images(detections: Detections, root: ImagePlace) -> bool:
    """Rewrite Objects365's file names to the layout of the images below `root`; False if no image is found.

    The annotations say "images/v1/patch8/objects365_v1_00420917.jpg"; the downloads unpack to
    "patch8/objects365_v1_00420917.jpg", and mirrors use other layouts. The layout that finds most of the first images
    is used for all; if none finds any, the layout of the downloads.
    """
    layouts: list[Callable[[str], str]] = [_below_patch, str, _without_images, _name_only]
    sample = detections.file_names[:_PROBES]
    found = {layout: sum(image_exists(root, layout(name)) for name in sample) for layout in layouts}
    best = max(layouts, key=found.__getitem__)
    detections.file_names = [best(name) for name in detections.file_names]
    return found[best] > 0


def _below_patch(name: str) -> str:
    """The patch folder and the file, without the prefix of the annotations."""
    parts = PurePosixPath(name).parts
    start = next((i for i, part in enumerate(parts) if part.startswith("patch")), 0)
    return "/".join(parts[start:])


def _without_images(name: str) -> str:
    return name.removeprefix("images/")


def _name_only(name: str) -> str:
    return PurePosixPath(name).name
