"""Datasets in the hub's form, to be labelled, and with objects and relations as `import hf --map`
reads them.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from sgpipe.errors import EngineError, ImageError, StoreError, UserError
from sgpipe.files.image_roots import image_root
from sgpipe.files.roots import HubRoot
from sgpipe.recipe import HubConfig, SourceConfig, load_recipe
from sgpipe.records import Box, Record
from sgpipe.sources.detections import write_detections
from sgpipe.sources.hub import check_hub, prepare_hub, read_split, stamp_split
from sgpipe.sources.hub_files import find_files
from sgpipe.storage.source_index import SourceIndex
from tests.sgpipe.export.hub_stub import COMMIT, answer_at, hub  # noqa: F401 - a fixture
from tests.sgpipe.sources.hub_datasets import (
    BOXES,
    HEIGHT,
    NAMES,
    TRAIN,
    WIDTH,
    features,
    jpeg,
    row,
    touch,
    write,
)
from tests.values import values_of

TEST = "data/test-00000-of-00001.parquet"


def read(
    folder: Path, split: str = "train", form: str | None = None, **settings: object
) -> tuple[list[Record], dict[str, Any]]:
    """The records of a split, with boxes of this form, and the description of its index."""
    config = HubConfig.model_validate({"dataset": str(folder), **settings})
    detections, meta = read_split(SourceConfig(format="hub", hub=config, boxes=form), split)
    path = folder / "index.arrow"
    write_detections(path, detections, meta)
    index = SourceIndex(path)
    return index.records(0, len(index)), index.meta


def boxes_of(record: Record) -> list[list[float]]:
    return [[round(value, 3) for value in box.bbox] for box in record.objects]


def classes_of(record: Record) -> list[tuple[str, int]]:
    return values_of(record.objects, "category", "category_id")


def test_a_dataset_that_states_everything(tmp_path):
    ids = {name: datasets.Value("int64") for name in ("image_id", "width", "height")}
    write(
        tmp_path / TRAIN,
        [row(i, image_id=7 * i, width=WIDTH, height=HEIGHT) for i in range(5)],
        features(**ids),
    )
    records, meta = read(tmp_path)
    assert values_of(records, "image_id") == ["0", "7", "14", "21", "28"]
    boxes = [Box(NAMES[n], n, tuple(box)) for n, box in zip([0, 1, 2, 1], BOXES, strict=True)]
    assert records[3] == Record("21", "hub", "train", f"{TRAIN}#3", WIDTH, HEIGHT, boxes)
    assert meta["categories"] == NAMES
    assert "boxes are read as xywh: 100.0%" in meta["notes"][0]


def as_form(box: list[float], form: str) -> list[float]:
    x, y, w, h = box
    numbers = {
        "xywh": [x, y, w, h],
        "xyxy": [x, y, x + w, y + h],
        "cxcywh": [x + w / 2, y + h / 2, w, h],
    }
    sides = [WIDTH, HEIGHT] * 2 if form.endswith("n") else [1] * 4
    return [
        value / side for value, side in zip(numbers[form.removesuffix("n")], sides, strict=True)
    ]


@pytest.mark.parametrize("form", ["xyxy", "cxcywh", "xywhn", "cxcywhn"])
@pytest.mark.parametrize("is_named", [True, False])
def test_every_form_of_boxes_gives_the_same_boxes(tmp_path, form, is_named):
    objects = {"bbox": [as_form(box, form) for box in BOXES], "category": [0, 1, 2, 1]}
    write(tmp_path / TRAIN, [row(0) | {"objects": objects}])
    records, meta = read(tmp_path, form=form if is_named else None)
    assert boxes_of(records[0]) == BOXES
    assert bool(meta["notes"]) is not is_named


def test_objects_may_be_a_list_of_objects_whose_classes_are_words(tmp_path):
    box = {"bbox": datasets.List(datasets.Value("float64")), "label": datasets.Value("string")}
    kinds = datasets.Features({"photo": datasets.Image(), "annotations": datasets.List(box)})
    rows = [
        {
            "photo": {"bytes": jpeg(i), "path": None},
            "annotations": [{"bbox": b, "label": n} for b, n in annotated],
        }
        for i, annotated in enumerate(
            [[(BOXES[0], "zebra"), (BOXES[1], "ant")], [], [(BOXES[2], "ant")]]
        )
    ]
    write(tmp_path / "train.parquet", rows, kinds)
    records, _ = read(tmp_path)
    assert list(map(classes_of, records)) == [
        [("zebra", 1), ("ant", 0)],
        [],
        [("ant", 0)],
    ]
    assert values_of(records, "image_id") == ["0", "1", "2"]
    assert set(values_of(records, "width", "height")) == {(WIDTH, HEIGHT)}  # the images say so


def test_columns_of_other_names_are_mapped_and_others_listed(tmp_path):
    text = datasets.Value("string")
    kinds = features(frame=datasets.Image(), when=text, says=datasets.List(text))
    renamed = {
        "frame": {"bytes": jpeg(9, (40, 30)), "path": None},
        "when": "b",
        "says": ["a cat", "two  dogs"],
    }
    write(tmp_path / TRAIN, [row(0) | renamed, row(1) | renamed], kinds)
    for names, message in (
        (
            {},
            (
                r"no column of images, or several: image, frame: pass .*columns\.image=COLUMN; it"
                r" has image, "
            ),
        ),
        (
            {"image": "frame", "width": "size"},
            r"no column size: .*columns\.width=COLUMN; it has .*objects\.bbox",
        ),
    ):
        with pytest.raises(UserError, match=message):
            read(tmp_path, columns=names)
    columns = {"image": "image", "id": "when", "captions": "says"}
    records, meta = read(tmp_path, columns=columns)
    assert values_of(records, "image_id", "file_name") == [("b", f"{TRAIN}#image:0")]
    assert values_of(records[0].captions, "text") == ["a cat", "two dogs"]
    assert meta["problems"]["duplicate_images"] == 1


def test_columns_within_columns_have_ids_and_sizes_and_others_are_refused(tmp_path):
    meta = {"number": 5, "wide": 40, "high": 30}
    number = datasets.Value("int64")
    kinds = features(
        meta=dict.fromkeys(meta, number), thumbnail=datasets.Value("binary"), label=number
    )
    write(
        tmp_path / TRAIN,
        [row(0) | {"meta": meta, "thumbnail": jpeg(9, (40, 30)), "label": 3}],
        kinds,
    )
    names = {"id": "meta.number", "width": "meta.wide", "height": "meta.high", "image": "thumbnail"}
    (record,), _ = read(tmp_path, columns=names, form="xywh")
    assert (record.image_id, record.width, record.height) == ("5", 40, 30)
    assert record.file_name == f"{TRAIN}#thumbnail:0"

    for name in ("objects", "image.bytes"):
        with pytest.raises(
            UserError, match=r"no column of images, or several: image: pass .*columns\.image"
        ):
            read(tmp_path, columns={"image": name})


def test_numbers_without_names_are_refused_unless_the_recipe_names_them(tmp_path):
    kinds = features()
    kinds["objects"]["category"] = datasets.List(datasets.Value("int64"))
    write(tmp_path / TRAIN, [row(0)], kinds)
    with pytest.raises(
        UserError, match=r"the numbers in objects\.category have no names: pass --set 'source\.hub"
    ):
        read(tmp_path)
    assert classes_of(read(tmp_path, classes=["a", "b", "c"])[0][0])[1] == ("b", 1)


def test_images_and_boxes_that_cannot_be_used_are_error_rows(tmp_path):
    bad = {"bbox": BOXES, "category": [0]}
    rows = [
        row(0),
        row(1) | {"image": {"bytes": b"no image", "path": "x"}},
        row(2) | {"image": None},
    ]
    rows = [{**columns, "id": 1} for columns in (*rows, row(3) | {"objects": bad}, row(4))]
    write(tmp_path / TRAIN, rows, features(id=datasets.Value("int64")))
    records, _ = read(tmp_path)
    # ids that are not unique are none
    assert values_of(records, "image_id") == [
        "0",
        "1",
        "2",
        "3",
        "4",
    ]
    assert values_of(records, "status") == ["ok", "error", "error", "error", "ok"]
    assert records[3].error == "source: it has 4 boxes and 1 class"
    assert list(map(boxes_of, records)) == [BOXES, [], [], [], BOXES]


def test_sizes_that_nothing_states_are_those_that_datasets_shows(tmp_path):
    image = {"bytes": jpeg(0, (HEIGHT, WIDTH), orientation=6), "path": None}
    path = write(tmp_path / TRAIN, [row(0) | {"image": image}])
    (record,), _ = read(tmp_path)
    shown = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))[0]["image"]
    assert (record.width, record.height) == shown.size == (WIDTH, HEIGHT)


def test_what_is_no_dataset_is_refused(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(UserError, match=r"^train\.parquet cannot be read as Parquet: "):
        read(tmp_path)
    touch(tmp_path, "csv/a.csv")
    with pytest.raises(UserError, match="no Parquet files"):
        find_files(HubConfig(dataset=str(tmp_path / "csv")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="the dataset user/name is not in the hub's cache"):
        find_files(HubConfig(dataset="user/name"))
    for missing in ("/a/b/c", "/a/b"):
        with pytest.raises(UserError, match=f"no such folder: {missing}"):
            find_files(HubConfig(dataset=missing))
    with pytest.raises(EngineError, match="is not a dataset of the hub"):
        HubRoot("hf://models/x").open("a")


def test_a_dataset_of_the_hub_is_read_from_its_cache_without_the_hub(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = tmp_path / "cache/datasets--anna--set"
    write(folder / "snapshots" / commit / TRAIN, list(map(row, range(3))))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    source = SourceConfig(format="hub", hub=HubConfig(dataset="anna/set"))
    prepared = prepare_hub(source)
    location = f"hf://datasets/anna/set@{commit}"
    assert (prepared.hub.dataset, prepared.images("train")) == (location, location)
    assert prepare_hub(prepared) == prepared
    detections, meta = read_split(prepared, "train")
    assert len(detections.file_names) == 3
    assert stamp_split(prepared, "train")["contents"] == [location, [[TRAIN, 0, commit]]]
    assert image_root(location).open(f"{TRAIN}#2").getvalue() == row(2)["image"]["bytes"]
    assert meta["annotations"] == location
    with pytest.raises(UserError, match="not in the hub's cache"):
        prepare_hub(SourceConfig(format="hub", hub=HubConfig(dataset="anna/set@other")))


def test_a_dataset_of_the_hub_is_downloaded_file_by_file(tmp_path, monkeypatch, hub):  # noqa: F811 - a fixture
    local = write(tmp_path / "train.parquet", list(map(row, range(3))))
    hub.repositories["anna/set"] = {TRAIN: local.read_bytes(), TEST: b"", "README.md": b"# card"}
    # between the attempts of huggingface_hub
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    asked = list[int]()
    ask = HfApi.dataset_info
    monkeypatch.setattr(
        HfApi, "dataset_info", lambda *args, **named: asked.append(1) or ask(*args, **named)
    )
    prepared = prepare_hub(
        SourceConfig(format="hub", hub=HubConfig(dataset="anna/set", split="train"))
    )
    assert len(asked) == 1
    assert prepared.images("train") == f"hf://datasets/anna/set@{COMMIT}"
    read_split(prepared, "train")
    root = image_root(prepared.images("train"))
    assert root.open(f"{TRAIN}#1").getvalue() == row(1)["image"]["bytes"]
    root.open(f"{TRAIN}#2")
    assert set(hub.downloads) == {f"{COMMIT}/README.md", f"{COMMIT}/{TRAIN}"}
    assert len(hub.downloads) == 4  # each was asked for, then downloaded
    hub.failures = {"/resolve/": [401]}
    # no fault of an image
    with pytest.raises(EngineError, match=r"data/test.* refuses this user \(401\)"):
        root.open(f"{TEST}#0")
    with pytest.raises(
        ImageError, match=r"a\.jpg of the dataset anna/set does not exist on the hub"
    ):
        root.open("a.jpg")
    assert [*map(root.contains, (f"./{TRAIN}#5", "a.jpg", "../a"))] == [True, False, False]
    with pytest.raises(UserError, match="the dataset anna/other is not on the hub, or is private"):
        prepare_hub(SourceConfig(format="hub", hub=HubConfig(dataset="anna/other")))
    hub.failures = {"/api/datasets": [503]}
    with pytest.raises(StoreError, match="the hub answers 503"):
        prepare_hub(prepared)
    answer_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StoreError, match="the hub cannot be reached"):
        prepare_hub(prepared)
    with pytest.raises(
        StoreError, match=rf"{TEST} of the dataset anna/set: the hub cannot be reached \("
    ):
        root.open(f"{TEST}#0")


def test_gaps_are_counted_and_rows_without_boxes_stay(tmp_path):
    kinds = features()
    kinds["objects"]["bbox"] = datasets.List(datasets.List(datasets.Value("float64")))
    kinds["objects"]["iscrowd"] = datasets.List(datasets.Value("int8"))
    gaps = {
        "bbox": [BOXES[0], [1.0, 2.0], None, BOXES[1]],
        "category": [0, 1, 2, None],
        "iscrowd": [1, 0, 0, None],
    }
    empty = {"bbox": [], "category": [], "iscrowd": []}
    write(
        tmp_path / TRAIN, [row(0) | {"objects": objects} for objects in (gaps, None, empty)], kinds
    )
    records, meta = read(tmp_path)
    assert values_of(records, "status") == ["ok"] * 3
    assert values_of(records[0].objects, "category", "iscrowd") == [("cat", True)]
    assert list(map(boxes_of, records)) == [[BOXES[0]], [], []]
    problems = {name: number for name, number in meta["problems"].items() if number}
    assert problems == {"malformed": 2, "unknown_category": 1, "crowd": 1}


def test_boxes_of_another_type_or_outside_every_image_are_refused(tmp_path):
    kinds = features()
    kinds["objects"]["bbox"] = datasets.List(datasets.Value("string"))
    for boxes, columns, message in (
        ([[900.0, 900.0, 5.0, 5.0]], None, r"in no form .*--set source\.boxes=FORM"),
        (["a"], kinds, r"no column of boxes of four numbers \(objects\.bbox has others\)"),
    ):
        write(tmp_path / TRAIN, [row(0) | {"objects": {"bbox": boxes, "category": [0]}}], columns)
        with pytest.raises(UserError, match=message):
            read(tmp_path)


def test_columns_of_other_values_and_flat_names_are_refused_and_damaged_pages_are_named(tmp_path):
    image = {"bytes": jpeg(), "path": None}
    boxes = [BOXES[0]]
    names = ["cat"]
    columns_of_file = {"image": image, "phash": b"1", "objects": {"bbox": boxes, "category": names}}
    for mapping, columns, message in (
        (columns_of_file, {}, ""),
        (
            {"image": image, "objects.bbox": boxes, "objects.category": names},
            {},
            "no column of boxes: pass",
        ),
        (
            {"image": image, "bbox": BOXES[0], "label": names * 4},
            {},
            r"boxes of four numbers \(bbox has others\)",
        ),
        (
            columns_of_file | {"says": 5},
            {"captions": "says"},
            r"no column of texts \(says has others\): pass .*columns\.captions",
        ),
    ):
        pq.write_table(pa.Table.from_pylist([mapping]), tmp_path / "train.parquet")
        with pytest.raises(UserError, match=message) if message else nullcontext():
            (record,), _ = read(tmp_path, columns=columns)
            assert (record.file_name, len(record.objects)) == ("train.parquet#0", 1)
    file = write(tmp_path / "train.parquet", [row(0)])
    content = bytearray(file.read_bytes())
    content[4:-2000] = bytes(len(content) - 2004)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"^train\.parquet cannot be read as Parquet: "):
        read(tmp_path)


@pytest.mark.parametrize("change", [{"source.hub.dataset": None}, {"caption.captioner": None}])
def test_a_recipe_without_a_dataset_or_captions_is_refused(change):
    with pytest.raises(UserError, match=r"not set|no captions"):
        check_hub(load_recipe("hub", {"source.hub.dataset": "a/b", **change}))
