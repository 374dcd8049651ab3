"""GBC, made here in the form in which it is published: read, and refused if bad."""

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.records import Box, Caption, Record
from sgpipe.sources.gbc import gbc_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from tests.sgpipe.export.runs import imported
from tests.sgpipe.sources.scene_graph_files import (
    GRAPH,
    vertex,
)
from tests.values import values_of


def gbc(folder: Path, *graphs: object, lines: bool = True) -> list[Record]:
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
    captions += [
        Caption("The horse is under a tree.", "pair", [0, 1]),
        Caption("Trees are behind it."),
    ]
    assert row == Record("wiki/horses", "gbc", "all", "wiki/horses.jpg", 80, 40, boxes, captions)
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.compositions"] == 1


def test_gbc_takes_sizes_and_names_from_images_and_addresses(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "7.png")
    bare = GRAPH | {
        "img_path": None,
        "img_url": "https://example.org/a/7.png?x=1",
        "img_size": None,
    }
    graphs_of_paths = [GRAPH | {"img_path": path} for path in ("a/1.jpg", "b/1.jpg")]
    graphs_of_paths.append(bare | {"img_url": "https://example.org/b/7.png?x=1"})
    row, *rows = gbc(tmp_path, bare, *graphs_of_paths)
    assert (row.image_id, row.file_name, row.objects[0].bbox) == (
        bare["img_url"],
        "7.png",
        (20, 20, 40, 20),
    )
    assert values_of(rows, "image_id") == ["a/1", "b/1", graphs_of_paths[-1]["img_url"]]
    assert values_of(rows, "ok") == [True, True, False]
    assert "an earlier image has the file name 7.png, too" in rows[-1].error


def test_bad_graphs_of_gbc_are_error_rows(tmp_path):
    odd = ({"bbox": None}, {"vertex_id": 3}, {"descs": None}, {"out_edges": ["b"]})
    changes = [
        {"vertices": [{}]},
        *({"vertices": [vertex("a", "entity") | damage]} for damage in odd),
    ]
    changes += [{"img_size": size} for size in ([1, 2, 3], None)]
    bad = [GRAPH | change | {"img_path": f"{number}.jpg"} for number, change in enumerate(changes)]
    good, *failed = gbc(tmp_path, GRAPH, *bad)
    assert (good.ok, len(good.captions)) == (True, 4)
    assert len(failed) == 7
    assert all(values_of(failed, "error"))


def test_cut_lines_and_other_items_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(GRAPH) + "\n" + json.dumps(GRAPH)[:50])
    with pytest.raises(UserError, match=r"a.jsonl: line 2 is not JSON, or is cut short"):
        list(gbc_source(tmp_path / "a.jsonl", tmp_path, "all").read(Counter()))
    (tmp_path / "a.jsonl").write_text("[1]\n7\n" + json.dumps(GRAPH))
    (row,) = imported(gbc_source(tmp_path / "a.jsonl", tmp_path, "all"), tmp_path, tmp_path / "run")
    assert row.ok
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.malformed"] == 2
