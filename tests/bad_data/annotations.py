"""Bad COCO annotations, as `sgpipe generate` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from sgpipe.recipe import PairConfig, Resources, SourceConfig, SplitConfig
from sgpipe.records import Triplet
from sgpipe.sources.opening import open_source
from sgpipe.stages.base import LoadStage
from sgpipe.stages.pair import PairStage
from tests.bad_data.case import Outcome, cases

IMAGE = {"id": 1, "file_name": "1.png", "width": 100, "height": 80}
BOX = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
CATEGORY = {"id": 1, "name": "dog"}
GOOD = {"images": [IMAGE], "annotations": [BOX], "categories": [CATEGORY]}
NAN = float("nan")
CAPTION = {"image_id": 1, "caption": "a dog"}
NAMED = r"dog \[10.0, 10.0, 20.0, 20.0\]"

Make = Callable[[Path], Any]
TEXT = json.dumps(GOOD)


def process(folder: Path, file: Any) -> Outcome:
    """The records and problem counts of the source, after the stages that open images and pair
    boxes.
    """
    captions = folder / "captions.json"
    files = {"annotations": folder / "a.json", "captions": captions if captions.exists() else None}
    source = SourceConfig(splits={"val": SplitConfig(images=folder, **files)})
    index = open_source(source, "val", folder / "index.arrow")
    records = index.records(0, len(index))
    LoadStage({"val": folder}, Resources())(records)
    for record in records:
        record.triplets = [Triplet("dog", "near", "dog", "dog", "dog", "near", 0)]
    pairs = PairStage(PairConfig(), "coco", index.meta["categories"])
    pairs.setup()
    pairs(records)
    assert all(len(record.pairs) <= PairConfig().max_pairs for record in records)
    failed = [str(record.error) for record in records if not record.ok]
    if failed:
        return Outcome("error row", "; ".join(failed))
    counted = [
        f"{name} {number}" for name, number in sorted(index.meta["problems"].items()) if number
    ]
    if counted:
        return Outcome("counted", ", ".join(counted))
    shown = []
    for record in records:
        boxes = [
            f"{box.category} {[round(float(side), 2) for side in box.bbox]}"
            for box in record.objects
        ]
        shown.append(
            f"{record.image_id} {record.width}x{record.height} {len(boxes)} boxes:"
            f" {', '.join(boxes[:3])}"
        )
    return Outcome("accepted", "; ".join(shown))


def holds(content: str | bytes, file_name: str = "1.png", captions: str | None = None) -> Make:
    def make(folder: Path) -> None:
        Image.new("RGB", (100, 80)).save(folder / file_name)
        (folder / "a.json").write_bytes(content.encode() if isinstance(content, str) else content)
        if captions is not None:
            (folder / "captions.json").write_text(captions)

    return make


def says(**arrays: object) -> Make:
    """The valid file with other arrays; None removes an array."""
    return holds(
        json.dumps({key: value for key, value in (GOOD | arrays).items() if value is not None})
    )


def image(**values: object) -> Make:
    return says(images=[IMAGE, {**IMAGE, "id": 2, **values}])


def box(**values: object) -> Make:
    """A valid box, and one with the given values."""
    return says(annotations=[BOX, {**BOX, "bbox": [30, 30, 9, 9], **values}])


def many_boxes(folder: Path) -> None:
    corners = ((number % 300 * 0.3, number // 300 * 0.2) for number in range(100_000))
    says(annotations=[{**BOX, "bbox": [x, y, 9, 9]} for x, y in corners])(folder)


def category(name: Any) -> Make:
    return says(categories=[{"id": 1, "name": name}])


def without(key: str, mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def captioned(*captions: object) -> Make:
    return holds(json.dumps(GOOD), captions=json.dumps({"annotations": [CAPTION, *captions]}))


_FILES: tuple[tuple[Any, ...], ...] = (
    ("no file", lambda folder: None, "refused"), ("a folder", lambda folder: (folder / "a.json").mkdir(), "refused"),
    ("100,000 levels of nesting", holds('{"images": ' + "[" * 100_000), "refused"),
    ("a number of 5,000 digits", holds(TEXT.replace("100", "1" * 5000)), "refused"),
    ("captions instead of boxes", says(annotations=[CAPTION]), "refused"),
    ("no images", says(images=None), "refused"), ("no categories", says(categories=None), "refused"),
    ("no annotations", says(annotations=None), "accepted", "1 100x80 0 boxes"),
    ("annotations before images", holds(json.dumps(dict(reversed(GOOD.items())))), "accepted", NAMED),
)  # fmt: skip
_IMAGES: tuple[tuple[Any, ...], ...] = (
    ("an image without an id", image(id=None), "counted", "^malformed 1$"),
    ("a number instead of an image", says(images=[IMAGE, 7]), "counted", "^malformed 1$"),
    ("an image id as text", says(annotations=[{**BOX, "image_id": "1"}]), "accepted", NAMED),
    ("no file_name", says(images=[without("file_name", IMAGE)]), "error row"),
    ("a number as text for the width", image(width="100"), "accepted", "2 100x80"),
    ("a word for the width", image(width="wide"), "error row"),
    ("a size that differs from the image", image(width=99), "error row"),
    ("a file name outside the folder", image(file_name="../../1.png"), "error row"),
    ("a file name with half a surrogate pair", image(file_name="\ud800.png"), "error row"),
)
_BOXES: tuple[tuple[Any, ...], ...] = (
    ("NaN in a box", box(bbox=[NAN, 1, 1, 1]), "counted", "^not_finite 1$"),
    ("a box of 1e308", box(bbox=[1e308, 1, 1e308, 1]), "counted", "^degenerate 1$"),
    ("a box of zero height", box(bbox=[10, 10, 5, 0]), "counted", "^degenerate 1$"),
    ("a box of three numbers", box(bbox=[1, 2, 3]), "counted", "^malformed 1$"),
    ("numbers as text", box(bbox=["30", "30", "9", "9"]), "accepted", r"dog \[30.0, 30.0, 9.0, 9.0\]"),
    ("words instead of numbers", box(bbox=["ten", 10, 5, 5]), "counted", "^malformed 1$"),
    ("a category id of 1.5", box(category_id=1.5), "counted", "^malformed 1$"),
    ("only unreadable boxes", says(annotations=[{**BOX, "bbox": "x"}] * 3), "refused"),
    ("100,000 boxes in an image", many_boxes, "accepted", "1 100x80 100000 boxes"),
)  # fmt: skip
_NAMES: tuple[tuple[Any, ...], ...] = (
    ("names in any script", category("自行车 🚲 çä"), "accepted", r"自行车 🚲 çä \["),
    ("terminal escape codes in a name", category("dog\x1b[31m\x07\0"), "accepted", r"boxes: dog\x1b\[31m\x07\x00 \["),
    ("half a surrogate pair in a name", category("dog\ud800"), "accepted", r"boxes: dog\? \["),
    ("an empty name", says(categories=[CATEGORY, {"id": 2, "name": " "}]), "counted", "^malformed 1$"),
    ("a name of 100,000 letters", category("x" * 100_000), "accepted", "x{100000}"),
    ("two categories of the same name", says(categories=[CATEGORY, {"id": 2, "name": "dog"}]), "accepted", NAMED),
    ("a number instead of a caption", captioned({"image_id": 1, "caption": 7}), "counted", "^malformed 1$"),
    ("a captions file without captions", holds(TEXT, captions='{"annotations": [{"image_id": 1}]}'), "refused"),
    ("captions of other images", holds(TEXT, captions='{"annotations": [{"image_id": 9, "caption": "a"}]}'), "refused"),
)  # fmt: skip

CASES = cases("annotations", process, (*_FILES, *_IMAGES, *_BOXES, *_NAMES))
