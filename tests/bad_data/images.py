"""Bad and unusual images, annotated as 8 x 6 pixels, as the first stage of a run opens them."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sgpipe.images import open_row_image
from sgpipe.recipe import Resources
from sgpipe.records import Record
from sgpipe.stages.base import LoadStage
from tests.bad_data.case import Outcome, cases

SIZE = (8, 6)
NAME = "a.jpg"
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n%%EOF\n"
BIG = (64, 48)


def process(folder: Path, size: Any) -> Outcome:
    name, width, height = size if isinstance(size, tuple) else (NAME, *SIZE)
    record = Record("1", "coco", "val", name, width, height)
    LoadStage({"val": folder}, Resources())([record])
    if not record.ok:
        return Outcome("error row", str(record.error))
    image = open_row_image({"val": folder}, record)
    mean = list(map(round, np.asarray(image).reshape(-1, 3).mean(0)))
    return Outcome("accepted", f"{image.mode} {image.width}x{image.height} {mean}")


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def flat(
    mode: str, colour: Any, image_format: str, size: tuple[int, int] = SIZE, **options: object
) -> bytes:
    return encoded(Image.new(mode, size, colour), image_format, **options)


def holds(data: bytes, name: str = NAME, size: tuple[int, int] = SIZE) -> Callable[[Path], Any]:
    def make(folder: Path) -> tuple[str, int, int]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        return name, *size

    return make


def outside(folder: Path) -> tuple[str, int, int]:
    (folder.parent / "secret.png").write_bytes(flat("RGB", "red", "PNG"))
    return str(folder.parent / "secret.png"), *SIZE


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rotated(size: tuple[int, int]) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return flat("RGB", "white", "JPEG", size, exif=exif)


def with_text_bomb(folder: Path) -> tuple[str, int, int]:
    text = PngInfo()
    text.add_text("comment", "x" * (80 << 20), zip=True)
    return holds(flat("RGB", "white", "PNG", pnginfo=text))(folder)


def animated(image_format: str) -> bytes:
    frames = [Image.new("RGB", SIZE, colour) for colour in ("red", "blue")]
    options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


JPEG = encoded(NOISE, "JPEG")
PNG = encoded(NOISE, "PNG")
DEEP = encoded(Image.fromarray(np.full((6, 8), 32768, np.uint16)), "PNG")
FLOATS = encoded(Image.fromarray(np.full((6, 8), 0.5, np.float32)), "TIFF")
SEE_THROUGH = encoded(Image.new("RGBA", SIZE, (0, 0, 0, 0)).quantize(), "PNG", transparency=0)

_ROWS: tuple[tuple[Any, ...], ...] = (
    ("a missing file", lambda folder: None, "error row"),
    ("an empty file", holds(b""), "error row"),
    ("a web page saved as an image", holds(b"<!doctype html><title>404</title>"), "error row"),
    ("JPEG cut short in the middle", holds(JPEG[: len(JPEG) // 2], size=BIG), "error row"),
    ("JPEG with garbage after its end", holds(JPEG + b"garbage" * 99, size=BIG), "accepted", "RGB 64x48"),
    ("PNG cut short in the middle", holds(PNG[: len(PNG) // 2], size=BIG), "error row"),
    ("PNG with a changed byte", holds(PNG[:500] + bytes([PNG[500] ^ 255]) + PNG[501:], size=BIG), "error row"),
    ("CMYK", holds(flat("CMYK", (0, 255, 255, 0), "JPEG")), "accepted", r"RGB 8x6 \[25\d, \d, \d\]"),
    ("16 bits per pixel", holds(DEEP), "accepted", r"RGB 8x6 \[128, 128, 128\]"),
    ("floating-point pixels", holds(FLOATS), "error row"),
    ("greyscale", holds(flat("L", 7, "PNG")), "accepted", r"\[7, 7, 7\]"),
    ("a palette", holds(flat("RGB", "red", "GIF")), "accepted", r"\[255, 0, 0\]"),
    ("a transparent palette: on white", holds(SEE_THROUGH), "accepted", r"\[255, 255, 255\]"),
    ("half-transparent: on white", holds(flat("RGBA", (255, 0, 0, 128), "PNG")), "accepted", r"\[255, 127, 127\]"),
    ("animated GIF: its first frame", holds(animated("GIF")), "accepted", r"\[25\d, \d, \d\]"),
    ("animated WebP: its first frame", holds(animated("WEBP")), "accepted", r"\[255, 0, 0\]"),
    ("EXIF rotation, annotated as stored", holds(rotated((8, 6))), "accepted", "RGB 8x6"),
    ("EXIF rotation, annotated as displayed", holds(rotated((6, 8))), "accepted", "RGB 8x6"),
    ("a size that differs from the annotation", holds(JPEG), "error row"),
    ("a bomb of 60,000 x 60,000 pixels", holds(png_that_claims(60_000, 60_000)), "error row"),
    ("a bomb in a PNG comment", with_text_bomb, "error row"),
    ("0 x 0 pixels", holds(png_that_claims(0, 0)), "error row"),
    ("1 x 1 pixel", holds(flat("RGB", "red", "PNG", (1, 1)), size=(1, 1)), "accepted", "RGB 1x1"),
    ("PNG named .jpg", holds(flat("RGB", "red", "PNG")), "accepted", r"\[255, 0, 0\]"),
    ("EPS (a program) named .jpg", holds(EPS), "error row"),
    ("a name in any script", holds(flat("RGB", "red", "PNG"), "größe 图 🚲.png"), "accepted", r"\[255, 0, 0\]"),
    ("a folder instead of a file", lambda folder: (folder / NAME).mkdir(), "error row"),
    ("a named pipe", lambda folder: os.mkfifo(folder / NAME), "error row"),
    ("a link to itself", lambda folder: (folder / NAME).symlink_to(folder / NAME), "error row"),
    ("a name of 5,000 letters", lambda folder: ("x" * 5000, *SIZE), "error row"),
    ("the name of an image outside the folder", outside, "error row"),
)  # fmt: skip

CASES = cases("image", process, _ROWS)
