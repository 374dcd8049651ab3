"""SVG, made here in the form in which it is published: read, and refused if bad."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.svg import svg_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from tests.sgpipe.export.runs import imported
from tests.sgpipe.sources.scene_graph_files import (
    graphs,
    svg_form,
)
from tests.values import values_of

THING = {"name": "dog", "bbox": [1, 2, 5, 6]}
SIZE = {"width": 20, "height": 10}


def svg(folder: Path, content: Any, out: str = "run") -> list[Record]:
    (folder / "sg.json").write_text(json.dumps(content))
    rows = imported(svg_source(folder / "sg.json", "train"), folder, folder / out)
    assert verify(folder / out).ok
    return rows


@given(graphs(("train",)))
@settings(max_examples=15, deadline=None)
def test_svg_is_read_field_by_field(originals):
    with TemporaryDirectory() as folder:
        returned = svg(Path(folder), svg_form(originals))
    for record in originals:
        record.dataset = "svg"
        record.file_name = f"{record.image_id}.jpg"
        record.objects = [replace(box, iscrowd=False) for box in record.objects]
        record.relations.sort(key=lambda relation: relation.subject)
    assert returned == originals


def test_bad_objects_of_svg_make_an_error_row(tmp_path):
    odd = (
        {"name": None},
        {"bbox": [1, 2, 3]},
        {"relations": 7},
        {"attributes": "red"},
        {"relations": [{"object": 1}]},
    )
    things = [THING, {"name": "dog"}, [1], *(THING | change for change in odd)]
    good, *bad = svg(
        tmp_path, {str(n): SIZE | {"objects": {"1": thing}} for n, thing in enumerate(things)}
    )
    assert good.objects == [Box("dog", 0, (1, 2, 4, 4))]
    assert len(bad) == 7
    assert all(values_of(bad, "error"))


def test_svg_counts_relations_of_unknown_objects_and_refuses_other_forms(tmp_path):
    relations = [{"object": "9", "name": "near"}, "near 1", {"object": 1, "name": "is"}]
    (row,) = svg(tmp_path, {"a": SIZE | {"objects": {"1": THING | {"relations": relations}}}})
    assert row.relations == [Relation(0, 0, "is")]
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.unknown_object"] == 2
    (row,) = svg(tmp_path, {"a": SIZE | {"objects": {}}, "b": 7}, "run 2")
    assert Manifest.load(tmp_path / "run 2").shards[0].counts["problem.malformed"] == 1
    for content in ({"images": [{"id": 1}]}, [{"objects": []}], {"a": 7}):
        (tmp_path / "sg.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="contains no image to import"):
            imported(svg_source(tmp_path / "sg.json", "train"), tmp_path, tmp_path / "other")
