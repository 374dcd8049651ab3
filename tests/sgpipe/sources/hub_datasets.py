"""Datasets as they are on the hub, small."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from tests.sgpipe.export.hub_stub import COMMIT, answer_at, hub  # noqa: F401 - a fixture

NAMES = ["cat", "dog", "cup"]
WIDTH = 80
HEIGHT = 60
# Boxes in every corner, as in real data: x, y, width, height.
BOXES = [
    [0.0, 0.0, 30.0, 20.0],
    [50.0, 40.0, 30.0, 20.0],
    [40.0, 5.0, 40.0, 50.0],
    [2.0, 30.0, 10.0, 30.0],
]
TRAIN = "data/train-00000-of-00001.parquet"


def jpeg(color: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT), orientation: int = 1) -> bytes:
    exif = Image.Exif()
    file = io.BytesIO()
    exif[0x0112] = orientation
    Image.new("RGB", size, (color % 256, 100, 200)).save(file, "PNG", exif=exif)
    return file.getvalue()


def features(**columns: object) -> datasets.Features:
    box = datasets.List(datasets.Value("float32"), length=4)
    label = datasets.ClassLabel(names=NAMES)
    objects = {"bbox": datasets.List(box), "category": datasets.List(label)}
    return datasets.Features({"image": datasets.Image(), "objects": objects, **columns})


def row(number: int, **columns: object) -> dict[str, Any]:
    objects = {"bbox": BOXES, "category": [0, 1, 2, 1]}
    return {
        "image": {"bytes": jpeg(number), "path": f"{number}.png"},
        "objects": objects,
        **columns,
    }


def write(
    path: Path, rows: list[dict[str, Any]], kinds: datasets.Features | None = None, batch: int = 100
) -> Path:
    """A Parquet file with row groups of `batch` rows, as `datasets` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=kinds or features()).to_parquet(
        path, batch_size=batch
    )
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
