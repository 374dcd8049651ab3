"""A small run with everything that a page must cope with, and its application."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

from starlette.testclient import TestClient

from sgpipe.records import Box, Record
from sgpipe.storage.index import Index
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.view.app import create_app
from sgpipe.view.pages import Viewer
from tests.sgpipe.stats.runs import scene
from tests.sgpipe.training.data.runs import SIZE, make_run

EVIL = "<script>alert('x')</script>"
STRANGE = "folder/ü 50%#?&.png"
LONG = "a very long caption " * 500


def record(
    image_id: str,
    *relations: tuple[int, str, int, float | None],
    caption: str = "",
    **changes: object,
) -> Record:
    """An image of 24 × 16 pixels with a person, a horse and a box of class EVIL."""
    boxes = [
        Box("person", 1, (2, 2, 8, 8)),
        Box("horse", 2, (12, 4, 8, 10)),
        Box(EVIL, 3, (0, 0, 4, 4)),
    ]
    values = {
        "file_name": f"{abs(hash(image_id))}.png",
        "width": SIZE[0],
        "height": SIZE[1],
        **changes,
    }
    return replace(scene(image_id, relations, boxes, [caption] if caption else []), **values)


def make_gallery_run(root: Path) -> Path:
    """A run of which one image is missing, one row failed, and one names a file outside its
    folder.
    """
    failed = record("failed")
    crowd = [Box("person", 1, (1, 1, 2, 2))] * 500
    failed.fail("caption", f"image cannot be read {EVIL}")
    records = [
        record("a", (0, "riding", 1, 0.9), (1, "next to", 0, 0.3), caption="a person riding a horse"),
        record(STRANGE, (0, EVIL, 2, 0.8), caption=f"{EVIL} {LONG}"), record("gone", (0, "riding", 1, 0.7)),
        record("outside", (0, "riding", 1, 0.6), file_name="../outside.png"),
        record("crowd", *((n, "behind", n + 1, 0.5) for n in range(499)), objects=crowd), failed,
        *(record(f"n{number}", (0, "near", 1, number / 100)) for number in range(1, 100)),
    ]  # fmt: skip
    make_run(root, records, spoilt={"gone": None, "outside": None}, rows=20)
    (root / "outside.png").write_bytes(b"secret")
    return root


def open_client(
    run: Path | Index, judgements: Path | None = None, images: Path | None = None
) -> TestClient:
    """A browser at the application over a run, whose judgements may be in another folder."""
    index = run if isinstance(run, Index) else Index(run)
    log = JudgementLog((judgements or index.root) / JUDGEMENTS, index.fingerprint)
    viewer = Viewer("the run", index, log, name="anna", images=images)
    return TestClient(create_app(viewer), base_url="http://localhost")


def attributes(page: str, pattern: str) -> list[str]:
    """What a pattern of one group finds in a page, as a browser reads it."""
    return list(map(html.unescape, re.findall(pattern, page)))
