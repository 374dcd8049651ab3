import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records

MAN = {"bbox": [1, 2, 30, 40], "category_id": 1}
BIKE = {"bbox": [0, 0, 64, 48], "category_id": 2}
RELATION = {"subject_id": 0, "object_id": 1, "category_id": 3}
GRAPH = {
    "image_id": 1, "width": 64, "height": 48,
    "objects": [{"object_id": i, "x": 0, "y": 0, "w": 9, "h": 9, "names": ["dog"]} for i in (1, 2)],
    "relationships": [{"predicate": "near", "subject_id": 1, "object_id": 2}],
}  # fmt: skip
SIZE = {"width": 64, "height": 48}
INSTANCES = {
    "images": [{"id": 1, "file_name": "1.jpg", **SIZE}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 0}],
    "categories": [{"id": 1, "name": "person"}],
}
TRIPLETS = {"train": {"1": [[0, 0, 1]]}, "val": {}, "rel_categories": ["__background__", "on"]}


def hoia(name: str, key: str = "hoi_annotation") -> list[dict]:
    return [{"file_name": name, "annotations": [MAN, BIKE], key: [RELATION], **SIZE}]


FILES = {
    "vg": [GRAPH], "hico": hoia("HICO_train2015_00000001.jpg"), "vcoco": hoia("COCO_train2014_000000000001.jpg"),
    "openimages": hoia("0001.jpg", "rel_annotations"),
    "rlipv2": [{**GRAPH, "dataset": "coco2017", "data_split": "train2017"}], "coco-rel": INSTANCES,
}  # fmt: skip


def invoke(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def folder(tmp_path) -> Path:
    for kind, content in FILES.items():
        (tmp_path / f"{kind}_train.json").write_text(json.dumps(content))
    (tmp_path / "rel.json").write_text(json.dumps(TRIPLETS))
    return tmp_path


def options(folder: Path, kind: str, file: str | None = None) -> list[object]:
    relations = ["--relations", folder / "rel.json"] if kind == "coco-rel" else []
    return [
        "import",
        kind,
        "--annotations",
        folder / f"{file or kind}_train.json",
        "--images",
        folder,
        *relations,
    ]


@pytest.mark.parametrize("kind", FILES)
def test_each_kind_is_imported_and_counted(folder, kind):
    result = invoke(*options(folder, kind), "--out", folder / "out")
    assert result.exit_code == 0, result.stderr
    (record,) = iter_records(folder / "out")
    assert (record.ok, record.split, len(record.relations)) == (True, "train", 1)
    lines = [line.split("│") for line in result.stdout.splitlines() if "│" in line]
    cells = {cell[1].strip(): cell[2].strip() for cell in lines}
    assert (cells["images"], cells["relations"], cells["objects"]) == (
        "1 of 1",
        "1",
        str(len(record.objects)),
    )


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("file", FILES)
def test_files_in_another_format_are_refused_by_name(folder, kind, file):
    # RLIPv2's format includes scene graphs without confidences
    if kind == file or (kind, file) == (
        "rlipv2",
        "vg",
    ):
        return
    result = invoke(*options(folder, kind, file), "--out", folder / "out")
    assert result.exit_code == 2
    assert f"{file}_train.json has the format " in result.stderr
    assert ", not " in result.stderr
    assert not (folder / "out").exists()


def test_options_reach_the_import(folder):
    out = folder / "out"
    result = invoke(
        *options(folder, "vg"), "--out", out, "--split", "mine", "--no-preprocess", "--limit", "1"
    )
    assert result.exit_code == 0
    run = Manifest.load(out).run
    assert (run["identity"]["split"], run["identity"]["options"]) == ("mine", {"preprocess": False})
    result = invoke(*options(folder, "vg"), "--out", out, "--split", "mine")
    assert result.exit_code == 2
    assert "options.preprocess: False then, True now" in result.stderr
