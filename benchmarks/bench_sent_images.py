"""Images as they are sent to a server: CPU time, bytes, and what becomes of thin outlines.

    python -m benchmarks.bench_sent_images [--rounds N] [--data FOLDER]

COCO's images of 640x480 with a red and a blue outline of two pixels, as a scorer shows them. CPU
time is of one thread, base64 included; the fewest of N rounds, on average over the images. Colours
of outlines: how far they are from those that were drawn (the largest difference of red, green and
blue, on average over the pixels), and how many are nearer to the other outline's colour.
"""

from __future__ import annotations

import argparse
import base64
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from benchmarks.measure import best, report
from sgpipe.recipe import JPEG_QUALITY
from sgpipe.stages.score.scorer import OBJECT_COLOUR, SUBJECT_COLOUR
from sgpipe.stages.served.images import file_url, image_url

SIZE = (640, 480)
BOXES = {SUBJECT_COLOUR: (60, 80, 340, 400), OBJECT_COLOUR: (220, 40, 600, 300)}
WIDTH = 2

Encoder = Callable[[Image.Image], str]


def as_png(image: Image.Image) -> str:
    """Return a data URL as it was before JPEG."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return file_url(buffer.getvalue(), "image/png")


def as_coarse_jpeg(image: Image.Image) -> str:
    """Return a JPEG with colours at half the resolution, Pillow's own choice."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=2)
    return file_url(buffer.getvalue(), "image/jpeg")


WAYS: dict[str, Encoder] = {
    "PNG, compress_level 1": as_png,
    f"JPEG, quality {JPEG_QUALITY}, 4:4:4 (sent)": image_url,
    f"JPEG, quality {JPEG_QUALITY}, 4:2:0": as_coarse_jpeg,
}


def outlined(image: Image.Image) -> Image.Image:
    """Return a copy with both boxes."""
    marked = image.copy()
    pen = ImageDraw.Draw(marked)
    for colour, box in BOXES.items():
        pen.rectangle(box, outline=colour, width=WIDTH)
    return marked


def content(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def outline_errors(drawn: Image.Image, sent: Image.Image) -> tuple[float, float]:
    """Return how far outlines are from their colours, and the share taken for the other."""
    before = np.asarray(drawn, dtype=int)
    after = np.asarray(sent, dtype=int)
    distances = []
    confused = []
    for colour in BOXES:
        (other,) = BOXES.keys() - {colour}
        pixels = after[(before == colour).all(axis=2)]
        distance = np.abs(pixels - colour).max(axis=1)
        distances.append(distance)
        confused.append(np.abs(pixels - other).max(axis=1) < distance)
    return float(np.concatenate(distances).mean()), float(np.concatenate(confused).mean())


def photographs(folder: Path) -> Iterator[Image.Image]:
    for path in sorted(folder.rglob("images_*/*.jpg")):
        image = Image.open(path)
        if image.size == SIZE and image.mode == "RGB":
            yield outlined(image)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    data = Path(os.environ.get("SGPIPE_ORACLE", ""), "data/coco_mini")
    parser.add_argument("--data", type=Path, default=data)
    options = parser.parse_args()
    images = list(photographs(options.data))
    if not images:
        parser.error(f"no JPEG of 640x480 in images_* of {options.data}; --data names a folder")
    table = Table("form", "CPU ms", "KB", "colours of outlines off by", "nearer to the other")
    for name, encode in WAYS.items():
        seconds = [best(lambda: encode(image), options.rounds) for image in images]  # noqa: B023
        sent = [content(encode(image)) for image in images]
        errors = [
            outline_errors(image, Image.open(BytesIO(data)))
            for image, data in zip(images, sent, strict=True)
        ]
        off, confused = np.mean(errors, axis=0)
        table.add_row(
            name,
            f"{1000 * np.mean(seconds):.1f}",
            f"{np.mean([len(data) for data in sent]) / 1000:.0f}",
            f"{off:.1f} of 255",
            f"{confused:.1%}",
        )
    report(__doc__ or "", table, f"{len(images)} images.")


if __name__ == "__main__":
    main()
