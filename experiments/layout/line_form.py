"""V-COCO's line form as files of `sgpipe import coco-rel`:
`python -m experiments.layout.line_form FILE OUT`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.command import run_command
from experiments.layout.data import AnnotatedImage, read_lines

SPLIT = "test"


def convert(
    file: Annotated[
        Path, typer.Argument(help="A file in the line form, such as test_half.jsonl.gz.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for test.json, rel.json and images/, empty.")],
) -> None:
    """Write COCO's instances, RelTR's relations, and an empty folder of images."""
    images = read_lines(file)
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / f"{SPLIT}.json").write_text(json.dumps(instances(images)), encoding="utf-8")
    (out / "rel.json").write_text(json.dumps(relations(images)), encoding="utf-8")


def instances(images: Sequence[AnnotatedImage]) -> dict[str, Any]:
    """Return images and boxes in COCO's form."""
    names = sorted({name for image in images for name in image.layout.classes})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    rows = []
    boxes: list[dict[str, Any]] = []
    for image in images:
        size = {"width": image.layout.width, "height": image.layout.height}
        rows.append({"id": image.image_id, "file_name": f"{image.image_id:012d}.jpg", **size})
        corners = image.layout.boxes.tolist()
        for (left, top, right, bottom), name in zip(corners, image.layout.classes, strict=True):
            width = right - left
            height = bottom - top
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image.image_id,
                    "category_id": numbers[name],
                    "bbox": [round(value, 2) for value in (left, top, width, height)],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": rows, "annotations": boxes, "categories": categories}


def relations(images: Sequence[AnnotatedImage]) -> dict[str, Any]:
    """Return relations in RelTR's form."""
    known: dict[str, int] = {}
    by_image = {}
    for image in images:
        triplets = []
        for subject, actions, thing in image.relations:
            for action in actions:
                triplets.append([subject, thing, known.setdefault(action, len(known))])
        by_image[str(image.image_id)] = triplets
    return {SPLIT: by_image, "rel_categories": list(known)}


if __name__ == "__main__":
    run_command(convert)
