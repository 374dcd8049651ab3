"""VG150, made here in the form of its loaders: read, refused if bad, written and read again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.records import Attribute, Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.psg import psg_source
from sgpipe.sources.vg150 import vg150_source
from sgpipe.storage.verify import verify
from tests.sgpipe.export.runs import imported
from tests.sgpipe.sources.scene_graph_files import HEIGHT, WIDTH, bare, graphs, round_trip
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

h5py = pytest.importorskip("h5py")
BAD_TABLES = {
    "relationships": [[0, 2]] * 6,
    "predicates": [[3]] * 6,
    "labels": [[0]] * 14,
    "attributes": [[9]] * 14,
    "img_to_last_box": [99] * 8,
    "img_to_first_rel": [5] * 8,
}


def vg150(folder: Path, **changes: object) -> tuple[Path, Path, Path]:
    """The files of VG150, `changes` in the HDF5. Of 8 images 1 has no boxes, 2 no relations; 5 to 7
    are for testing.
    """
    first = [0, -1, 2, 4, 6, 8, 10, 12]
    related = [0, -1, -1, 1, 2, 3, 4, 5]
    tables = {
        "split": [0] * 5 + [2] * 3,
        "img_to_first_box": first,
        "img_to_last_box": [1, -1, 3, 5, 7, 9, 11, 13],
        "img_to_first_rel": related,
        "img_to_last_rel": related,
        "boxes_1024": [[100, 300, 200, 100], [512, 512, 101, 200]] * 7,
        "labels": [[1], [2]] * 7,
        "attributes": [[0, 0, 0], [2, 0, 1]] * 7,
        "relationships": [[at, at + 1] for at in (0, 4, 6, 8, 10, 12)],
        "predicates": [[2]] * 6,
    }
    with h5py.File(folder / "VG-SGG.h5", "w") as file:
        for name, values in (tables | changes).items():
            if values is not None:
                file[name] = np.array(values, np.int32)
    kinds = {
        "label": ["dog", "frisbee"],
        "predicate": ["near", "catching"],
        "attribute": ["red", "round"],
    }
    dicts = {
        f"{kind}_to_idx": {name: n for n, name in enumerate(names, 1)}
        for kind, names in kinds.items()
    }
    (folder / "dicts.json").write_text(json.dumps(dicts))
    listed = [
        {"image_id": n, "width": 512, "height": 400, "url": "…"} for n in [*range(8), 1592, 1722]
    ]
    (folder / "image_data.json").write_text(json.dumps(listed))
    return folder / "VG-SGG.h5", folder / "dicts.json", folder / "image_data.json"


def test_vg150_is_read_as_its_loader_reads_it(tmp_path, monkeypatch):
    files = vg150(tmp_path)
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2/0.jpg").touch()
    rows = imported(vg150_source(*files, tmp_path, "all"), tmp_path, tmp_path / "all")
    assert values_of(rows, "image_id") == list(map(str, range(8)))
    assert rows[0].objects == [
        Box("dog", 1, (0.0, 125.0, 100.0, 50.0)),
        Box(
            "frisbee",
            2,
            (230.5, 206.0, 50.5, 100.0),
            attributes=[Attribute("round"), Attribute("red")],
        ),
    ]
    assert rows[0].relations == [Relation(0, 1, "catching")]
    assert (rows[0].file_name, rows[3].file_name) == ("VG_100K_2/0.jpg", "3.jpg")
    assert (rows[1].objects, rows[2].relations, len(rows[2].objects)) == ([], [], 2)

    def ids(split: str) -> str:
        rows = imported(vg150_source(*files, tmp_path, split), tmp_path, tmp_path / split)
        return "".join(values_of(rows, "image_id"))

    assert (ids("val"), ids("test")) == ("034", "567")  # of 5,000, only these have relations
    with h5py.File(files[0], "r+") as file:
        file.attrs["validation_images"] = 1
    assert ids("train") == "1234"


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_images_of_vg150_are_error_rows(tmp_path, name):
    source = vg150_source(*vg150(tmp_path, **{name: BAD_TABLES[name]}), tmp_path, "all")
    assert imported(source, tmp_path, tmp_path / "run")[0].error
    assert verify(tmp_path / "run").ok


def test_bad_files_of_vg150_are_refused(tmp_path):
    hdf5, dicts, image_data = files = vg150(tmp_path)

    def refused(message: str, split: str = "all") -> None:
        with pytest.raises(UserError, match=message):
            vg150_source(*files, tmp_path, split)

    data_bytes = hdf5.read_bytes()
    for content in (data_bytes[: len(data_bytes) // 2], data_bytes[:100], b"", b"[]" * 900):
        hdf5.write_bytes(content)
        refused(r"VG-SGG.h5 is not a whole VG-SGG.h5 \(")
    for changes in (
        {"labels": None},
        {"labels": [[1]] * 3},
        {"attributes": [[1]]},
        {"boxes_1024": [[1, 2, 3]] * 14},
    ):
        vg150(tmp_path, **changes)
        refused(rf"is not a whole VG-SGG.h5 \(.*{next(iter(changes))}")
    vg150(tmp_path)
    refused("pass --split train, val, test or all", "minival")
    image_data.write_text('[{"image_id": 1}]')
    refused(r"lists 1 images, but .* has 8")
    for text in ("[]", "{", '{"label_to_idx": {"dog": "x"}, "predicate_to_idx": {}}'):
        dicts.write_text(text)
        refused(r"is not VG-SGG-dicts\.json")


@given(graphs(("test", "train", "val")))
@settings(max_examples=15, deadline=None)
def test_vg150_comes_back_as_it_was(originals):
    def source(out: Path, split: str) -> AnnotationSource:
        files = ("VG-SGG-with-attri.h5", "VG-SGG-dicts-with-attri.json", "image_data.json")
        return vg150_source(*(out / name for name in files), out, split)

    originals = [
        replace(
            original, dataset="vg150", objects=[replace(b, iscrowd=False) for b in original.objects]
        )
        for original in originals
    ]
    returned = bare(round_trip(originals, "vg150", source))
    for box in (box for record in returned for box in record.objects):
        # 1024 is the longer side in the file
        box.bbox = tuple(round(number, 6) for number in box.bbox)
    assert returned == bare(originals, segmentation=None)


def test_numbered_splits_of_merged_runs_stay_on_their_side(tmp_path):
    graph = {"objects": [Box("dog", 0, (0, 0, 4, 4))], "relations": [Relation(0, 0, "on")]}
    splits = ("all", "test", "test_2", "train", "train_2", "val", "val_2")
    originals = [
        Record("7", "coco", split, f"{split}.jpg", WIDTH, HEIGHT, **graph) for split in splits
    ]
    run = make_shards(tmp_path / "run", originals)
    content = json.loads((export_run(run, "psg", tmp_path / "psg").root / "psg.json").read_text())
    ids = dict(values_of(content["data"], "file_name", "image_id"))
    assert len(set(ids.values())) == len(splits)
    test = [ids[f"{split}.jpg"] for split in ("test", "test_2", "val", "val_2")]
    assert content["test_image_ids"] == test
    sides = {
        "train": {"train", "train_2", "all"},
        "test": {"test", "test_2"},
        "val": {"val"},
        "val_2": {"val_2"},
    }
    for split, names in sides.items():
        returned = imported(
            psg_source(tmp_path / "psg/psg.json", split), tmp_path, tmp_path / f"in {split}"
        )
        assert set(values_of(returned, "file_name")) == {f"{name}.jpg" for name in names}
    with pytest.raises(
        UserError,
        match="has no split 'x': pass --split train, test_2, train_2, val, val_2, test or all",
    ):
        psg_source(tmp_path / "psg/psg.json", "x")
    out = export_run(run, "vg150", tmp_path / "vg150").root
    listed = json.loads((out / "image_data.json").read_text())
    assert len(set(values_of(listed, "image_id"))) == len(splits)
    with h5py.File(out / "VG-SGG-with-attri.h5") as file:
        sides = dict(zip(values_of(listed, "file_name"), file["split"][()].tolist(), strict=True))
        assert file.attrs["validation_images"] == 2
    assert [name for name in sides if sides[name] == 2] == ["test.jpg", "test_2.jpg"]
    assert list(sides)[:2] == ["val.jpg", "val_2.jpg"]


def test_crowds_confidences_and_many_attributes_are_left_out(tmp_path):
    many = [Attribute(f"a{n}") for n in range(12)]
    boxes = [Box("dog", 1, (0, 0, 4, 4), attributes=many), Box("dog", 1, (0, 0, 8, 8), True)]
    relations = [Relation(0, 1, "on"), Relation(0, 0, "near", 0.1), Relation(0, 0, "by", 0.5)]
    record = Record("a", "coco", "val", "a.jpg", WIDTH, HEIGHT, boxes, relations=relations)
    written = export_run(make_shards(tmp_path / "run", [record]), "vg150", tmp_path / "out")
    assert written.left_out == {
        "objects that the format cannot hold": 1, "attributes that the format cannot hold": 2,
        "relations that the format cannot hold": 1, "relations below the threshold": 1,
    }  # fmt: skip
    assert written.note == "the first 1 images are the split val: give num_val_im=1 to loaders"
