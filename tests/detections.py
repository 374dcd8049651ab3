"""A tiny dataset in COCO form, made from a seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = {1: "person", 2: "bicycle", 18: "dog"}
CAPTIONS = (
    "a man riding a bicycle next to a dog", "a dog running behind a person on a bike", "a woman walking her dog",
    "two people standing near a bicycle",
)  # fmt: skip


@dataclass(frozen=True)
class Files:
    images: Path
    annotations: Path
    captions: Path

    @property
    def options(self) -> list[str]:
        return [
            "--images",
            str(self.images),
            "--annotations",
            str(self.annotations),
            "--captions",
            str(self.captions),
        ]


def make_coco(
    folder: Path, images: int = 12, seed: int = 0, missing: tuple[int, ...] = ()
) -> Files:
    """Noise images with three to six boxes and two captions each; `missing` images are listed, not
    written.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    lists: dict[str, list] = {"images": [], "annotations": []}
    captions = []
    for number in range(images):
        name = f"{number:04d}.png"
        if number not in missing:
            pixels = rng.integers(0, 255, (48, 64, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
        lists["images"].append({"id": number, "file_name": name, "width": 64, "height": 48})
        for index in range(int(rng.integers(3, 7))):
            x, y, width, height = map(int, rng.integers([0, 0, 8, 8], [40, 30, 24, 18]))
            category = list(CATEGORIES)[index % 3]
            box = {
                "image_id": number,
                "category_id": category,
                "bbox": [x, y, width, height],
                "iscrowd": 0,
            }
            lists["annotations"].append(box)
        captions += [{"image_id": number, "caption": str(rng.choice(CAPTIONS))} for _ in range(2)]
    categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
    files = Files(folder / "images", folder / "instances_val.json", folder / "captions_val.json")
    files.annotations.write_text(json.dumps({**lists, "categories": categories}))
    files.captions.write_text(json.dumps({"annotations": captions}))
    return files
