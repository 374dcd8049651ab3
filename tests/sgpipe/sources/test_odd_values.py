"""Unexpected values in an annotation file become rows, problem counts, or a one-line error."""

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.coco import CocoRelations
from sgpipe.sources.hoi import OpenImages, hico_source, vcoco_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.scene_graphs import PseudoLabels, VisualGenome
from sgpipe.storage.shards import iter_records
from sgpipe.utils.console import Progress
from tests.sgpipe.cli.test_imports import FILES, GRAPH, TRIPLETS
from tests.sgpipe.sources.test_hoi import HICO_PAIRS, VCOCO_PAIRS
from tests.sgpipe.sources.test_open_images import VRD

INLINE = {
    "image_id": 2,
    "relationships": [{"predicate": "on", "subject": GRAPH["objects"][0], "object": GRAPH["objects"][1]}],
}
CONTENTS = {**FILES, "hico pairs": HICO_PAIRS, "vcoco pairs": VCOCO_PAIRS, "vrd": [VRD], "vg inline": [INLINE]}
ODD = (None, [], {}, "", "x", "-1", -1, 0, 2.5, 1e400, math.nan, 10**30, True, [None], [[]], {"a": 1}, "\ud800", " ")
ROUNDS = 15
QUIET = Progress(Console(quiet=True))


def open_source(kind: str, path: Path) -> AnnotationSource:
    folder = path.parent
    kind = kind.split()[0]
    if kind == "coco-rel":
        return CocoRelations(path, folder / "rel.json", "train").source()
    if kind == "rlipv2":
        return PseudoLabels(path, folder, "train").source()
    if kind == "vg":
        return VisualGenome(path, folder, "train").source()
    if kind in ("openimages", "vrd"):
        return OpenImages(path, "train").source()
    return {"hico": hico_source, "vcoco": vcoco_source}[kind](path, "train")


def replace_value(content: Any, rng: random.Random) -> Any:
    """The content with one value replaced by an unexpected one, or removed."""
    content = copy.deepcopy(content)
    positions = list(_positions(content))
    holder, key = rng.choice(positions)
    if rng.random() < 0.15:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return content


def _positions(value: Any):
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _positions(value[key])


@pytest.mark.parametrize("kind", [*CONTENTS, "rel.json"])
def test_unexpected_values_cause_no_traceback(tmp_path, kind):
    rng = random.Random(kind)
    path, errors = tmp_path / "annotations.json", []
    for number in range(ROUNDS):
        content, triplets = CONTENTS.get(kind, FILES["coco-rel"]), TRIPLETS
        if kind == "rel.json":
            triplets = replace_value(triplets, rng)
        else:
            content = replace_value(content, rng)
        path.write_text(json.dumps(content))
        (tmp_path / "rel.json").write_text(json.dumps(triplets))
        out = tmp_path / f"out{number}"
        try:
            import_annotations(open_source("coco-rel" if kind == "rel.json" else kind, path), tmp_path, out, QUIET)
        except UserError as error:
            errors.append(str(error))
            continue
        for record in iter_records(out):
            ends = {end for relation in record.relations for end in (relation.subject, relation.object)}
            assert ends <= set(range(len(record.objects)))
            assert record.ok or (record.error and not record.relations)
            assert all(box.is_nothing or min(box.bbox[2:]) > 0 for box in record.objects)
    assert len(errors) < ROUNDS
    assert all(len(error.splitlines()) == 1 for error in errors)
