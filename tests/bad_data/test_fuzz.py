"""Random damage becomes rows, problem counts or a one-line error; SGPIPE_FUZZ=20000 tries as many
examples per test.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.records import Box, Record, Relation, to_table
from sgpipe.sources.annotated import AnnotationSource, clip_objects
from sgpipe.sources.coco import coco_relations_source
from sgpipe.sources.hoi import hico_source, open_images_source, vcoco_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.opening import open_source
from sgpipe.sources.pseudo_labels import pseudo_label_source
from sgpipe.sources.visual_genome import visual_genome_source
from sgpipe.storage.manifest import MANIFEST, Manifest, ShardEntry
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import row_faults
from tests.bad_data.annotations import BOX, GOOD
from tests.sgpipe.cli.test_imports import FILES, GRAPH, TRIPLETS
from tests.sgpipe.sources.test_hoi import HICO_PAIRS, VCOCO_PAIRS, VRD
from tests.sgpipe.sources.test_import_run import QUIET

TOKENS = (
    b'null true NaN Infinity -Infinity -1 0 1e400 0.5 99999999999999999999 "" "x" "\\ud800" [] {}'
    b' [[]] { } [ ] : , " \\ \\u0000 \x00 \xff \xef\xbb\xbf \xe2\x80\xa8 \n \r\n - * & ! % @ ? | >'
    b" # --- ... <<: !!python/name:os.system"
).split(b" ")

THINGS = dict(zip(("subject", "object"), GRAPH["objects"], strict=True))
INLINE = {"image_id": 2, "relationships": [{"predicate": "on"} | THINGS]}
CONTENTS = {
    **FILES, "hico pairs": HICO_PAIRS, "vcoco pairs": VCOCO_PAIRS, "openimages vrd": [VRD], "vg inline": [INLINE],
}  # fmt: skip

NUMBERS = (
    st.floats()
    | st.floats(-50, 150)
    | st.integers(-50, 150).map(float)
    | st.sampled_from((0.0, 100.0, 60.0))
)
BBOX = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    number = int(os.environ.get("SGPIPE_FUZZ", examples))
    return settings(
        max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@st.composite
def damaged(draw: st.DrawFn, valid: bytes) -> bytes:
    """The bytes with up to three parts removed, inserted, duplicated or flipped, or cut short."""
    data = valid
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        stop = start + draw(st.sampled_from((0, 1, 2, 5, 20)))
        part = data[start:stop]
        changed = st.sampled_from((part * 2, bytes(byte ^ 1 for byte in part)))
        new = draw(st.sampled_from(TOKENS) | st.binary(max_size=4) | changed)
        data = data[:start] + new + (b"" if draw(st.integers(0, 9)) == 0 else data[stop:])
    return data


@contextmanager
def one_line_at_most() -> Iterator[None]:
    """Nothing is raised, or an error of one line."""
    try:
        yield
    except UserError as error:
        assert len(str(error).splitlines()) == 1, str(error)  # noqa: PT017 - it need not be raised


def assert_valid(records: list[Record], split: str) -> None:
    assert not list(row_faults(to_table(records), split))


@fuzz(150)
@given(data=damaged(json.dumps({**GOOD, "info": {"a": [1, "\u00e9"]}}).encode()))
def test_json_is_read_if_and_only_if_it_is_json(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    known = read = False
    with suppress(ValueError):
        known = isinstance(json.loads(data.decode("utf-8-sig")), list | dict)
    with one_line_at_most():
        list(JsonStream(path))
        read = True
    assert read == known


@fuzz(60)
@given(
    data=damaged(
        json.dumps({**GOOD, "annotations": [BOX, {**BOX, "bbox": [90, 70, 50, 50]}]}).encode()
    )
)
def test_detections_become_rows_counts_or_a_one_line_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(data)
    source = SourceConfig(splits={"val": SplitConfig(annotations=path, images=tmp_path)})
    (tmp_path / "index.json").unlink(missing_ok=True)
    with one_line_at_most():
        index = open_source(source, "val", tmp_path / "index.arrow")
        assert_valid(index.records(0, len(index)), "val")


def source_of(kind: str, path: Path) -> AnnotationSource:
    match kind:
        case "coco-rel":
            return coco_relations_source(path, path.parent / "rel.json", "train")
        case "rlipv2":
            return pseudo_label_source(path, path.parent, "train")
        case "vg":
            return visual_genome_source(path, path.parent, "train")
    return {"openimages": open_images_source, "hico": hico_source, "vcoco": vcoco_source}[kind](
        path, "train"
    )


@pytest.mark.parametrize("kind", [*CONTENTS, "rel.json"])
@fuzz(12)
@given(data=st.data())
def test_relations_become_rows_counts_or_a_one_line_error(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    form = "coco-rel" if kind == "rel.json" else kind
    files = {
        "a.json": json.dumps(CONTENTS[form]).encode(),
        "rel.json": json.dumps(TRIPLETS).encode(),
    }
    target = "rel.json" if kind == "rel.json" else "a.json"
    files[target] = data.draw(damaged(files[target]))
    for name, text in files.items():
        (folder / name).write_bytes(text)
    with one_line_at_most():
        import_annotations(
            source_of(form.split()[0], folder / "a.json"), folder, folder / "out", QUIET
        )
        assert_valid(list(iter_records(folder / "out")), "train")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    manifest = Manifest.create(tmp_path_factory.mktemp("run"), {"name": "x"})
    for start in range(0, 32, 8):
        manifest.commit(
            ShardEntry(
                "val", start, start + 8, f"data/{start}.parquet", "0" * 64, start, {"images": 8}
            )
        )
    return manifest


@fuzz(200)
@given(data=st.data())
def test_a_damaged_manifest_is_refused_or_lists_only_original_shards(
    manifest: Manifest, tmp_path: Path, data
) -> None:
    (tmp_path / MANIFEST).write_bytes(data.draw(damaged((manifest.root / MANIFEST).read_bytes())))
    with one_line_at_most():
        loaded = Manifest.load(tmp_path)
        assert loaded.run == manifest.run
        assert all(shard in manifest.shards for shard in loaded.shards)
        loaded.commit(ShardEntry("val", 0, 8, "data/again.parquet", "1" * 64, 1))  # a missing one
        assert Manifest.load(tmp_path).shards == loaded.shards


@fuzz(150)
@given(
    bboxes=st.lists(BBOX, max_size=6),
    ends=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6),
)
def test_clipped_boxes_are_inside_their_image_and_keep_their_relations(bboxes, ends) -> None:
    boxes = [Box(f"class {number}", number, bbox) for number, bbox in enumerate(bboxes)]
    relations = [Relation(s, o, f"{s} on {o}") for s, o in ends if max(s, o) < len(boxes)]
    record = Record("1", "d", "val", "1.jpg", 100, 60, boxes, relations=list(relations))
    problems = Counter[str]()
    clip_objects(record, problems)
    assert_valid([record], "val")
    assert problems["not_finite"] == sum(not all(map(math.isfinite, bbox)) for bbox in bboxes)
    assert problems["degenerate"] + problems["not_finite"] == len(boxes) - len(record.objects)
    assert problems["relations_of_dropped_boxes"] == len(relations) - len(record.relations)
    for relation in record.relations:
        subject, object_ = (
            record.objects[end].category_id for end in (relation.subject, relation.object)
        )
        assert relation.predicate == f"{subject} on {object_}"
    before = list(record.objects)
    second_problems = Counter[str]()
    clip_objects(record, second_problems)
    assert (record.objects, +second_problems) == (before, Counter())
