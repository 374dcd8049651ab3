"""Bad relation annotations, as `sgpipe import` reads them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.coco import coco_relations_source
from sgpipe.sources.hoi import hico_source, open_images_source, vcoco_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.scene_graphs import VisualGenome, pseudo_label_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from sgpipe.storage.verify import verify
from sgpipe.utils.console import Progress
from tests.bad_data.case import Case, Outcome, outcome
from tests.sgpipe.cli.test_imports import BIKE, FILES, GRAPH, INSTANCES, MAN, RELATION, SIZE, TRIPLETS

THING = GRAPH["objects"][0]
NEAR = GRAPH["relationships"][0]
HICO = "HICO_train2015_00000001.jpg"


def source_of(kind: str, path: Path) -> AnnotationSource:
    sources = {
        "coco-rel": lambda: coco_relations_source(path, path.parent / "rel.json", "train"),
        "rlipv2": lambda: pseudo_label_source(path, path.parent, "train"),
        "vg": lambda: VisualGenome(path, path.parent, "train").source(),
        "openimages": lambda: open_images_source(path, "train"),
        "hico": lambda: hico_source(path, "train"),
        "vcoco": lambda: vcoco_source(path, "train"),
    }
    return sources[kind]()


def process(folder: Path, kind: str) -> Outcome:
    """The rows and problem counts of the import, in which `sgpipe verify` must find no problems."""
    out = folder / "out"
    import_annotations(source_of(kind, folder / "a.json"), folder, out, Progress(Console(quiet=True)))
    assert verify(out).ok
    counts: Counter[str] = sum((Counter(shard.counts) for shard in Manifest.load(out).shards), Counter())
    problems = {name.removeprefix("problem."): n for name, n in counts.items() if name.startswith("problem.")}
    return outcome(iter_records(out), problems)


def holds(kind: str, content: Any, relations: Any = None) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        Image.new("RGB", (64, 48)).save(folder / "1.jpg")
        (folder / "a.json").write_text(json.dumps(content))
        (folder / "rel.json").write_text(json.dumps(relations or TRIPLETS))
        return kind

    return make


def graph(**values: Any) -> Callable[[Path], str]:
    return holds("vg", [{**GRAPH, **values}])


def thing(**values: Any) -> Callable[[Path], str]:
    return graph(objects=[*GRAPH["objects"], {**THING, "object_id": 3, **values}])


def relation(**values: Any) -> Callable[[Path], str]:
    return graph(relationships=[NEAR, {**NEAR, "predicate": "on", **values}])


def sure(confidence: Any) -> Callable[[Path], str]:
    graph = {**GRAPH, "dataset": "coco2017", "data_split": "train2017"}
    return holds("rlipv2", [{**graph, "relationships": [{**NEAR, "confidence": confidence}]}])


def hoia(entry: dict[str, Any], *objects: dict[str, Any]) -> Callable[[Path], str]:
    boxes = list(objects) or [MAN, BIKE]
    return holds("hico", [{"file_name": HICO, "annotations": boxes, "hoi_annotation": [{**RELATION, **entry}], **SIZE}])


def triplets(*entries: Any) -> Callable[[Path], str]:
    return holds("coco-rel", INSTANCES, {**TRIPLETS, "train": {"1": list(entries)}})


MANY = [{**THING, "object_id": i, "x": i % 50, "y": i // 50 % 40} for i in range(20_000)]

_ROWS: tuple[tuple[Any, ...], ...] = (
    ("a file for another command", holds("vg", FILES["hico"]), "refused"),
    ("annotations without relations", holds("vg", INSTANCES), "refused"),
    ("a duplicate image", holds("vg", [GRAPH, {**GRAPH, "relationships": []}]), "counted", "^duplicate_images 1$"),
    ("null instead of an image", holds("vg", [GRAPH, None]), "counted", "^malformed 1$"),
    ("no size and no image", graph(image_id=7, width=None), "error row"),
    ("no size, but an image", graph(width=None), "accepted", "1 64x48 2 boxes"),
    ("NaN in a box", thing(x=float("nan")), "counted", "^degenerate 1$"),
    ("a box across the edge", thing(w=1000), "counted", "^clipped 1$"),
    ("a box without a name", thing(names=[]), "counted", "^malformed 1$"),
    ("a relation to an unlisted object", relation(object_id=99), "counted", "^unknown_object 1$"),
    ("a relation without a predicate", relation(predicate=None), "counted", "^malformed 1$"),
    ("a duplicate relation", graph(relationships=[NEAR, NEAR]), "counted", "^repeated_relations 1$"),
    ("20,000 objects in an image", graph(objects=MANY), "accepted", "1 64x48 20000 boxes"),
    ("NaN for the confidence", sure(float("nan")), "counted", "^malformed 1$"),
    ("a subject index out of range", hoia({"subject_id": 2}), "error row"),
    ("a verb out of range", hoia({"category_id": 118}), "error row"),
    ("a box of three numbers", hoia({}, MAN, {**BIKE, "bbox": [1, 2, 3]}), "error row"),
    ("rel.json: an object index out of range", triplets([0, 1, 1]), "error row"),
    ("rel.json: a triplet of two numbers", triplets([0, 1]), "error row"),
    ("rel.json: another split", holds("coco-rel", INSTANCES, {"val": {}, "rel_categories": ["on"]}), "refused"),
)  # fmt: skip

CASES = [Case("import", what, make, process, kind, *pattern) for what, make, kind, *pattern in _ROWS]
