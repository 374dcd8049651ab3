"""Objects365 v2: COCO-like JSON with misspelled names, and pictures in patch folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from sgpipe.images import is_there
from sgpipe.sources.detections import Detections

_PROBES = 200


def locate_pictures(detections: Detections, root: Path) -> bool:
    """Rewrite the file names to where the pictures lie below `root`; False if none of the first is found.

    The annotations say "images/v1/patch8/objects365_v1_00420917.jpg"; the downloads unpack to
    "patch8/objects365_v1_00420917.jpg", and mirrors to other places. The layout under which most of the
    first names are found is taken for all; the patch folders when nothing is found.
    """
    layouts: list[Callable[[str], str]] = [_below_patch, str, _without_images, _name_only]
    sample = detections.file_names[:_PROBES]
    found = {layout: sum(is_there(root, layout(name)) for name in sample) for layout in layouts}
    best = max(layouts, key=found.__getitem__)
    detections.file_names = [best(name) for name in detections.file_names]
    return found[best] > 0


def _below_patch(name: str) -> str:
    """The patch folder and the file: what follows the dataset's own prefix."""
    parts = PurePosixPath(name).parts
    start = next((i for i, part in enumerate(parts) if part.startswith("patch")), 0)
    return "/".join(parts[start:])


def _without_images(name: str) -> str:
    return name.removeprefix("images/")


def _name_only(name: str) -> str:
    return PurePosixPath(name).name
