"""Bad COCO annotations, as `sgpipe generate` reads them."""

from __future__ import annotations

import gzip
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
from tests.bad_data.case import Case, Outcome, outcome

IMAGE = {"id": 1, "file_name": "1.png", "width": 100, "height": 80}
BOX = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20]}
CATEGORY = {"id": 1, "name": "dog"}
GOOD = {"images": [IMAGE], "annotations": [BOX], "categories": [CATEGORY]}
NAN = float("nan")
CAPTION = {"image_id": 1, "caption": "a dog"}
NAMED = r"dog \[10.0, 10.0, 20.0, 20.0\]"

Make = Callable[[Path], Any]


def process(folder: Path, made: Any) -> Outcome:
    """The records and problem counts of the source, after the stages that open images and pair boxes."""
    captions = folder / "captions.json"
    split = SplitConfig(
        annotations=folder / "a.json", images=folder, captions=captions if captions.exists() else None
    )  # fmt: skip
    index = open_source(SourceConfig(splits={"val": split}), "val", folder / "index.arrow")
    records = index.records(0, len(index))
    LoadStage({"val": folder}, Resources())(records)
    for record in records:
        record.triplets = [Triplet("dog", "near", "dog", "dog", "dog", "near", 0)]
    pairs = PairStage(PairConfig(), "coco", index.meta["categories"])
    pairs.setup()
    pairs(records)
    assert all(len(record.pairs) <= PairConfig().max_pairs for record in records)
    return outcome(records, index.meta["problems"])


def holds(content: str | bytes, file_name: str = "1.png", captions: str | None = None) -> Make:
    def make(folder: Path) -> None:
        Image.new("RGB", (100, 80)).save(folder / file_name)
        (folder / "a.json").write_bytes(content.encode() if isinstance(content, str) else content)
        if captions is not None:
            (folder / "captions.json").write_text(captions)

    return make


def says(**arrays: Any) -> Make:
    """The valid file with other arrays; None removes an array."""
    return holds(json.dumps({key: value for key, value in (GOOD | arrays).items() if value is not None}))


def image(**values: Any) -> Make:
    return says(images=[IMAGE, {"id": 2, "file_name": "1.png", "width": 100, "height": 80, **values}])


def box(**values: Any) -> Make:
    """A valid box, and one with the given values."""
    return says(annotations=[BOX, {**BOX, "bbox": [30, 30, 9, 9], **values}])


def bbox(*values: Any) -> Make:
    return box(bbox=list(values))


def category(name: Any) -> Make:
    return says(categories=[{"id": 1, "name": name}])


def without(key: str, of: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in of.items() if name != key}


def captioned(*captions: Any) -> Make:
    return holds(json.dumps(GOOD), captions=json.dumps({"annotations": [CAPTION, *captions]}))


MANY = [{**BOX, "bbox": [i % 300 * 0.3, i // 300 * 0.2, 9, 9]} for i in range(100_000)]
TEXT = json.dumps(GOOD)
FLIPPED = (
    gzip.compress(TEXT.encode(), mtime=0)[:-5] + b"\xff" + gzip.compress(TEXT.encode(), mtime=0)[-4:]
)  # in its checksum

_FILES: tuple[tuple[Any, ...], ...] = (
    ("no file", lambda folder: None, "refused"),
    ("an empty file", holds(""), "refused"),
    ("a folder", lambda folder: (folder / "a.json").mkdir(), "refused"),
    ("gzip", holds(gzip.compress(TEXT.encode(), mtime=0)), "accepted", NAMED),
    ("gzip cut short", holds(gzip.compress(TEXT.encode(), mtime=0)[:-9]), "refused"),
    ("gzip with a flipped byte", holds(FLIPPED), "refused"),
    ("UTF-16", holds(TEXT.encode("utf-16")), "refused"),
    ("UTF-8 with a byte order mark", holds(b"\xef\xbb\xbf" + TEXT.encode()), "accepted", NAMED),
    ("cut short in the middle", holds(TEXT[: len(TEXT) // 2]), "refused"),
    ("a trailing comma", holds(TEXT.replace("]}", "],}")), "refused"),
    ("100,000 levels of nesting", holds('{"images": ' + "[" * 100_000), "refused"),
    ("a number of 5,000 digits", holds(TEXT.replace("100", "1" * 5000)), "refused"),
    ("two files concatenated", holds(TEXT + TEXT), "refused"),
    ("captions instead of boxes", says(annotations=[CAPTION]), "refused"),
    ("no images", says(images=None), "refused"),
    ("no categories", says(categories=None), "refused"),
    ("no annotations", says(annotations=None), "accepted", "1 100x80 0 boxes"),
    ("annotations before images", holds(json.dumps(dict(reversed(GOOD.items())))), "accepted", NAMED),
)
_IMAGES: tuple[tuple[Any, ...], ...] = (
    ("a duplicate image id", image(id=1), "counted", "^duplicate_images 1$"),
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
    ("a duplicate box", says(annotations=[BOX, BOX]), "counted", "^duplicate_boxes 1$"),
    ("NaN in a box", bbox(NAN, 1, 1, 1), "counted", "^degenerate 1$"),
    ("a box of 1e308", bbox(1e308, 1, 1e308, 1), "counted", "^degenerate 1$"),
    ("a box of zero height", bbox(10, 10, 5, 0), "counted", "^degenerate 1$"),
    ("a box across the edge", bbox(90, 70, 50, 50), "counted", "^clipped 1$"),
    ("a box with negative coordinates", bbox(-5, -5, 20, 20), "counted", "^clipped 1$"),
    ("a box of three numbers", bbox(1, 2, 3), "counted", "^malformed 1$"),
    ("numbers as text", bbox("30", "30", "9", "9"), "accepted", r"dog \[30.0, 30.0, 9.0, 9.0\]"),
    ("words instead of numbers", bbox("ten", 10, 5, 5), "counted", "^malformed 1$"),
    ("a box of an unlisted image", box(image_id=9), "counted", "^unknown_image 1$"),
    ("a box of an unlisted category", box(category_id=99), "counted", "^unknown_category 1$"),
    ("a category id of 1.5", box(category_id=1.5), "counted", "^malformed 1$"),
    ("a box without a category", says(annotations=[BOX, without("category_id", BOX)]), "counted", "^malformed 1$"),
    ("an annotation that is null", says(annotations=[BOX, None]), "counted", "^malformed 1$"),
    ("a crowd", box(iscrowd=1), "counted", "^crowd 1$"),
    ("only unreadable boxes", says(annotations=[{**BOX, "bbox": "x"}] * 3), "refused"),
    ("100,000 boxes in an image", says(annotations=MANY), "accepted", "1 100x80 100000 boxes"),
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

CASES = [
    Case(f"annotations, {group}", what, make, process, kind, *pattern)
    for group, rows in (("file", _FILES), ("images", _IMAGES), ("boxes", _BOXES), ("names", _NAMES))
    for what, make, kind, *pattern in rows
]
