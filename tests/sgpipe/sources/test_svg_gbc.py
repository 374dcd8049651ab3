"""SVG's scene graphs and GBC's graphs of captions, made here in the form of their loaders."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.records import Box, Caption, Record, Relation
from sgpipe.sources.scene_graphs import gbc_source, svg_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from tests.sgpipe.export.runs import imported
from tests.sgpipe.sources.test_benchmarks import graphs


def svg_form(records: list[Record]) -> dict[str, Any]:
    """Objects by ids that count down, so that they are not positions."""
    form = {}
    for record in records:
        things: dict[str, Any] = {}
        for index, box in enumerate(record.objects):
            x, y, w, h = box.bbox
            own = [relation for relation in record.relations if relation.subject == index]
            things[str(100 - index)] = {
                "name": box.category,
                "bbox": [x, y, x + w, y + h],
                "attributes": [attribute.name for attribute in box.attributes],
                "segmentation": box.segmentation and json.loads(box.segmentation),
                "relations": [{"object": str(100 - each.object), "name": each.predicate} for each in own],
            }
        form[record.image_id] = {"width": record.width, "height": record.height, "objects": things}
    return form


def svg(folder: Path, content: Any, out: str = "run") -> list[Record]:
    (folder / "sg.json").write_text(json.dumps(content))
    rows = imported(svg_source(folder / "sg.json", "train"), folder, folder / out)
    assert verify(folder / out).ok
    return rows


@given(graphs(("train",)))
@settings(max_examples=15, deadline=None)
def test_svg_is_read_field_by_field(made):
    with TemporaryDirectory() as folder:
        found = svg(Path(folder), svg_form(made))
    wanted = [
        replace(
            record,
            dataset="svg",
            file_name=f"{record.image_id}.jpg",
            objects=[replace(box, iscrowd=False) for box in record.objects],
            relations=sorted(record.relations, key=lambda relation: relation.subject),
        )
        for record in made
    ]
    assert found == wanted


THING, SIZE = {"name": "dog", "bbox": [1, 2, 5, 6]}, {"width": 20, "height": 10}


def test_bad_objects_of_svg_make_an_error_row(tmp_path):
    odd = ({"name": None}, {"bbox": [1, 2, 3]}, {"relations": 7}, {"attributes": "red"}, {"relations": [{"object": 1}]})
    things = [THING, {"name": "dog"}, [1], *(THING | each for each in odd)]
    good, *bad = svg(tmp_path, {str(n): SIZE | {"objects": {"1": thing}} for n, thing in enumerate(things)})
    assert good.objects == [Box("dog", 0, (1, 2, 4, 4))]
    assert len(bad) == 7
    assert all(row.error for row in bad)


def test_svg_counts_relations_of_unknown_objects_and_refuses_other_forms(tmp_path):
    relations = [{"object": "9", "name": "near"}, "near 1", {"object": 1, "name": "is"}]
    (row,) = svg(tmp_path, {"a": SIZE | {"objects": {"1": THING | {"relations": relations}}}})
    assert row.relations == [Relation(0, 0, "is")]
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.unknown_object"] == 2
    (row,) = svg(tmp_path, {"a": SIZE | {"objects": {}}, "b": 7}, "run 2")
    assert Manifest.load(tmp_path / "run 2").shards[0].counts["problem.malformed"] == 1
    for content in ({"images": [{"id": 1}]}, [{"objects": []}], {"a": 7}):
        (tmp_path / "sg.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"is not \{width, height, objects"):
            imported(svg_source(tmp_path / "sg.json", "train"), tmp_path, tmp_path / "other")


def vertex(name: str, label: str, *texts: str, into: str | None = None, to: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "vertex_id": name,
        "bbox": {"left": 0.25, "top": 0.5, "right": 0.75, "bottom": 1.0, "confidence": 0.75},
        "label": label,
        "descs": [{"text": text, "label": "short"} for text in texts],
        "in_edges": [] if into is None else [{"source": "", "text": into, "target": name}],
        "out_edges": [{"source": name, "text": each, "target": each} for each in to],
    }


GRAPH = {
    "vertices": [
        vertex("", "image", "A horse and trees.", to=("horse", "trees", "[horse|trees]")),
        vertex("horse", "entity", "A brown horse.", into="brown horse"),
        vertex("trees", "composition", "Tree 1 is left of tree 2.", into="trees", to=("trees_0", "trees_1")),
        vertex("trees_0", "entity", into="tree 1"),
        vertex("trees_1", "entity", into="tree 2"),
        vertex("[horse|trees_0]", "relation", "The horse is under a tree.", to=("horse", "trees_0")),
        vertex("[horse|trees]", "relation", "Trees are behind it.", to=("horse", "trees")),
    ],
    "img_path": "wiki/horses.jpg",
    "img_url": None,
    "img_size": [80, 40],
}


def gbc(folder: Path, *graphs: Any, lines: bool = True) -> list[Record]:
    path = folder / ("graphs.jsonl" if lines else "graphs.json")
    path.write_text("\n".join(map(json.dumps, graphs)) if lines else json.dumps(graphs))
    rows = imported(gbc_source(path, folder, "all"), folder, folder / "run")
    assert verify(folder / "run").ok
    return rows


@pytest.mark.parametrize("lines", [True, False])
def test_gbc_gives_boxes_and_their_captions(tmp_path, lines):
    (row,) = gbc(tmp_path, GRAPH, lines=lines)
    at = {"bbox": (20, 20, 40, 20), "origin": "grounded", "score": 0.75}
    phrases = {"brown horse": "brown horse", "tree 1": "tree", "tree 2": "tree"}
    boxes = [Box(name, 0, phrase=phrase, **at) for phrase, name in phrases.items()]
    captions = [Caption("A horse and trees."), Caption("A brown horse.", "box", [0])]
    captions += [Caption("The horse is under a tree.", "pair", [0, 1]), Caption("Trees are behind it.")]
    assert row == Record("wiki/horses", "gbc", "all", "wiki/horses.jpg", 80, 40, boxes, captions)
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.compositions"] == 1


def test_gbc_takes_sizes_and_names_from_images_and_addresses(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "7.png")
    bare = GRAPH | {"img_path": None, "img_url": "https://example.org/a/7.png?x=1", "img_size": None}
    (row,) = gbc(tmp_path, bare)
    assert (row.image_id, row.file_name, row.objects[0].bbox) == (bare["img_url"], "7.png", (20, 20, 40, 20))


def test_images_of_gbc_with_one_base_name_are_all_kept(tmp_path):
    paths = [GRAPH | {"img_path": path} for path in ("a/1.jpg", "b/1.jpg")]
    urls = [f"https://example.org/{part}/image.jpg?x=1" for part in "pq"]
    rows = gbc(tmp_path, *paths, *(GRAPH | {"img_path": None, "img_url": url} for url in urls))
    assert [row.image_id for row in rows] == ["a/1", "b/1", *urls]


def test_bad_graphs_of_gbc_are_error_rows(tmp_path):
    odd = ({"bbox": None}, {"vertex_id": 3}, {"descs": None}, {"out_edges": ["b"]})
    changes = [{"vertices": [{}]}, *({"vertices": [vertex("a", "entity") | each]} for each in odd)]
    changes += [{"img_size": size} for size in ([1, 2, 3], None)]
    bad = [GRAPH | each | {"img_path": f"{number}.jpg"} for number, each in enumerate(changes)]
    good, *failed = gbc(tmp_path, GRAPH, *bad)
    assert (good.ok, len(good.captions)) == (True, 4)
    assert len(failed) == 7
    assert all(row.error for row in failed)


def test_cut_lines_and_other_items_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(GRAPH) + "\n" + json.dumps(GRAPH)[:50])
    with pytest.raises(UserError, match=r"a.jsonl: line 2 is not JSON, or is cut short"):
        list(gbc_source(tmp_path / "a.jsonl", tmp_path, "all").read(Counter()))
    (tmp_path / "a.jsonl").write_text("[1]\n7\n" + json.dumps(GRAPH))
    (row,) = imported(gbc_source(tmp_path / "a.jsonl", tmp_path, "all"), tmp_path, tmp_path / "run")
    assert row.ok
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.malformed"] == 2
