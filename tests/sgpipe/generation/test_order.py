"""The order of entries in annotation and caption files changes nothing but the order of boxes and relations."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.storage.shards import iter_records
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, CATEGORIES, Files, make_coco
from tests.factories import make_blip, untrained_tagger

SMALL = {"tag.short_side": 48, "tag.long_side": 64, "tag.threshold": 0.01, "tag.group_size": 3, "pair.max_pairs": 10}


def labels(files: Files, folder: Path, **settings: object) -> dict[str, Any]:
    """By image: the captions, and the relations between boxes as they are."""
    splits = {"val": {"annotations": files.annotations, "images": files.images, "captions": files.captions}}
    tagger = {"tag.tagger": str(folder.parent / "tagger")}
    made = load_recipe("coco", {"source.splits": splits, **tagger, **SMALL, **settings})
    generate(made, folder, Progress(Console(quiet=True)))
    found = {}
    for record in iter_records(folder):
        boxes = [f"{box.category} {box.bbox}" for box in record.objects]
        relations = [(boxes[r.subject], r.predicate, boxes[r.object], r.confidence) for r in record.relations]
        captions = [(caption.text, [boxes[index] for index in caption.boxes]) for caption in record.captions]
        found[record.image_id] = (sorted(relations), sorted(captions), record.left_out)
    return found


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("captioner", [False, True])
def test_shuffled_annotations_give_the_same_labels(tmp_path: Path, captioner: bool) -> None:
    untrained_tagger(tmp_path / "tagger", [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    settings: dict[str, object] = {"caption.captioner": None}
    if captioner:
        make_blip(tmp_path / "captioner")
        settings = {"caption.captioner": str(tmp_path / "captioner"), "caption.samples": 1}
        settings |= {"caption.scopes": ["image", "box"], "caption.max_crops": 3}
    files = make_coco(tmp_path / "coco", images=5)
    expected = labels(files, tmp_path / "first", **settings)
    assert any(relations for relations, _, _ in expected.values()) or captioner
    for number in range(1):
        for file in (files.annotations, files.captions):
            content = json.loads(Path(file).read_text())
            for name in {"annotations", "images", "categories"} & content.keys():
                random.Random(number).shuffle(content[name])
            Path(file).write_text(json.dumps(content))
        assert labels(files, tmp_path / f"shuffled{number}", **settings) == expected
