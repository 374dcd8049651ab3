"""PSG, VG150, SVG and GBC, made here in the form of their loaders: read, refused if bad, written
and read again.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.records import Attribute, Box, Caption, Record, Relation
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.coco import coco_source
from sgpipe.sources.gbc import gbc_source
from sgpipe.sources.psg import psg_source
from sgpipe.sources.svg import svg_source
from sgpipe.sources.vg150 import vg150_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from tests.sgpipe.export.runs import imported
from tests.sgpipe.stats.runs import make_shards

WIDTH = 12
HEIGHT = 8


BOXES = (0, 0, 12, 8), (2, 1, 6, 4), (7, 3, 11, 8)  # xyxy, later ones on top of earlier ones
IDS = np.zeros((HEIGHT, WIDTH), np.uint32)
BAD = [
    *({"annotations": each} for each in ([{}] * 3, [])),
    *({"segments_info": [each] * 3} for each in (None, {"category_id": 3})),
    *({"relations": [triplet]} for triplet in ([0, 3, 0], [-1, 0, 0], [0, 1, 2], [0, 1])),
]


NAMES = ("person", "dog", "grass", "n" * 300, 'ü "q", \u2028')


h5py = pytest.importorskip("h5py")


BAD_TABLES = {
    **{
        "relationships": [[0, 2]] * 6,
        "predicates": [[3]] * 6,
        "labels": [[0]] * 14,
        "attributes": [[9]] * 14,
    },
    **{"img_to_last_box": [99] * 8, "img_to_first_rel": [5] * 8},
}


THING = {"name": "dog", "bbox": [1, 2, 5, 6]}
SIZE = {"width": 20, "height": 10}


def rle(mask: np.ndarray) -> dict[str, Any]:
    runs = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": runs["size"], "counts": runs["counts"].decode()}


for number, (left, top, right, bottom) in enumerate(BOXES):
    IDS[top:bottom, left:right] = 70_000 + number


def psg(folder: Path, **changes: Any) -> Path:
    """A psg.json of two images in `folder`, the second a test image without relations; `changes`:
    of the first.
    """
    classes = (2, 0, 1)
    segments = [
        {"id": 70_000 + n, "category_id": c, "isthing": int(c < 2)} for n, c in enumerate(classes)
    ]
    item = {
        **{"file_name": "val2017/1.jpg", "height": HEIGHT, "width": WIDTH, "image_id": "1"},
        **{
            "pan_seg_file_name": "panoptic/1.png",
            "segments_info": [s | {"iscrowd": 0, "area": 9} for s in segments],
        },
        "annotations": [
            {"bbox": list(box), "category_id": c} for box, c in zip(BOXES, classes, strict=True)
        ],
        "relations": [[1, 2, 1], [2, 2, 0]],
    }
    content = {
        "data": [
            item | changes,
            item | {"image_id": "2", "file_name": "val2017/2.jpg", "relations": []},
        ],
        **{"thing_classes": ["person", "dog"], "stuff_classes": ["grass-merged"]},
        **{"predicate_classes": ["over", "in front of"], "test_image_ids": ["2"]},
    }
    (folder / "panoptic").mkdir(exist_ok=True)
    colours = np.stack([IDS & 255, IDS >> 8 & 255, IDS >> 16], -1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "panoptic/1.png")
    (folder / "psg.json").write_text(
        json.dumps({k: v for k, v in content.items() if v is not None})
    )
    return folder / "psg.json"


def test_psg_is_read_with_its_splits_and_masks(tmp_path):
    path = psg(tmp_path)
    (record,) = imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "train")
    assert [box.category for box in record.objects] == ["grass-merged", "person", "dog"]
    assert [box.bbox for box in record.objects] == [(0, 0, 12, 8), (2, 1, 4, 3), (7, 3, 4, 5)]
    assert [json.loads(box.segmentation) for box in record.objects] == [
        rle(70_000 + n == IDS) for n in range(3)
    ]
    assert record.relations == [Relation(1, 2, "in front of"), Relation(2, 2, "over")]
    (other,) = imported(psg_source(path, "test"), tmp_path, tmp_path / "test")
    assert (other.image_id, other.relations, other.objects[0].segmentation) == ("2", [], None)
    assert [r.image_id for r in imported(psg_source(path, "all"), tmp_path, tmp_path / "all")] == [
        "1",
        "2",
    ]
    with pytest.raises(UserError, match="has no split 'val': pass --split train, test or all"):
        psg_source(path, "val")


def test_boxes_of_segments_come_from_any_outline(tmp_path):
    path = psg(tmp_path, annotations=[{"category_id": 0}] * 3)
    (record,) = imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "masks")
    assert [box.bbox for box in record.objects] == [(0, 0, 12, 8), (2, 1, 4, 3), (7, 3, 4, 5)]
    polygon = [[2, 1, 6, 1, 6, 4], [3, 2, 7.5, 2, 4, 3]]
    runs = {"size": [8, 12], "counts": [17, 3, 5, 3, 68]}
    path = psg(
        tmp_path,
        annotations=[{"segmentation": segmentation} for segmentation in (polygon, runs, RUNS)],
    )
    (record,) = imported(psg_source(path, "train"), tmp_path, tmp_path / "run")
    assert [box.bbox for box in record.objects] == [(2, 1, 5.5, 3), (2, 1, 2, 3), (2, 1, 4, 3)]


RUNS = rle(IDS == 70_001)


@pytest.mark.parametrize("changes", BAD)
def test_bad_images_of_psg_are_error_rows(tmp_path, changes):
    first, second = imported(
        psg_source(psg(tmp_path, **changes), "all"), tmp_path, tmp_path / "run"
    )
    assert first.error
    assert second.ok
    assert verify(tmp_path / "run").ok


BAD_OUTLINES: tuple[Any, ...] = (
    RUNS | {"size": [12, 8]},  # of another image
    rle(IDS[:4] > 0) | {"size": [8, 12]},  # too few
    *(RUNS | {"counts": counts} for counts in ("zzzz", "é\u2028", [100, -4], None)), RUNS | {"size": 96},
    [[0, 0, 1, 1]],  # two points
    [[0, 0, 1, 1, 2, float("nan")]],
    [[0, 0, 1, 1, 2, 2, 3]],  # half a point
    [0, 0, 1, 1, 2, 2], "mask",
)  # fmt: skip


def test_run_lengths_of_another_size_are_dropped_where_only_the_image_states_its_size(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "1.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3]}
    other_size = rle(np.ones((8, 11), np.uint8))
    annotations = [
        {**box, "id": 0, "segmentation": RUNS},
        {**box, "id": 1, "segmentation": other_size},
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content | {"annotations": annotations}))
    (record,) = imported(coco_source(tmp_path / "coco.json", "train"), tmp_path, tmp_path / "run")
    assert [box.segmentation for box in record.objects] == [json.dumps(RUNS), None]
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.segmentations"] == 1


@pytest.mark.parametrize("outline", BAD_OUTLINES)
def test_bad_segmentations_are_dropped_and_counted(tmp_path, outline):
    entries = [
        {"bbox": list(BOXES[0]), "segmentation": segmentation}
        for segmentation in (outline, RUNS, None)
    ]
    (record,) = imported(
        psg_source(psg(tmp_path, annotations=entries), "train"), tmp_path, tmp_path / "run"
    )
    assert [box.segmentation for box in record.objects] == [None, json.dumps(RUNS), None]
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.segmentations"] == 1


def test_a_missing_or_wrong_panoptic_png_is_an_error_row(tmp_path):
    path = psg(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "panoptic/1.png")
    (record,) = imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "a")
    assert "it is 3x3, the annotation says 12x8" in (record.error or "")
    (tmp_path / "panoptic/1.png").unlink()
    assert "1.png" in str(
        imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "b")[0].error
    )


def test_class_lists_that_are_missing_or_ambiguous_are_refused(tmp_path):
    path = psg(tmp_path)
    content = json.loads(path.read_text())
    for key, value in (
        ("predicate_classes", []),
        ("thing_classes", ["dog", "dog"]),
        ("stuff_classes", ["dog"]),
    ):
        path.write_text(json.dumps({k: v for k, v in (content | {key: value}).items() if v}))
        with pytest.raises(UserError, match="is missing, or has a name twice"):
            psg_source(path, "train")


@st.composite
def boxes(draw: Callable[..., Any]) -> Box:
    x, y = (draw(st.integers(0, 4 * HEIGHT - 2)) / 4 for _ in "xy")
    w, h = (draw(st.integers(1, int(4 * (HEIGHT - at)))) / 4 for at in (x, y))
    outline = [x, y, x + w, y, x + w, y + h]
    mask = np.array(
        draw(st.lists(st.booleans(), min_size=WIDTH * HEIGHT, max_size=WIDTH * HEIGHT))
    ).reshape(HEIGHT, -1)
    segmentation = draw(st.sampled_from([None, rle(mask), [outline], [outline, outline]]))
    crowd = draw(st.booleans())
    attributes = [
        Attribute(name)
        for name in draw(st.lists(st.sampled_from(["red", "a" * 300, "é"]), max_size=3))
    ]
    optional = {"attributes": attributes, "segmentation": segmentation and json.dumps(segmentation)}
    return Box(draw(st.sampled_from(NAMES)), 0, (x, y, w, h), crowd, **optional)


@st.composite
def graphs(draw: Callable[..., Any], splits: tuple[str, ...]) -> list[Record]:
    """Images of random objects and relations, also from an object to itself; confidences are
    none.
    """
    drawn = []
    for number in range(draw(st.integers(1, 4))):
        name = f"folder {number}/{number}.jpg"
        record = Record(str(number), "psg", draw(st.sampled_from(splits)), name, WIDTH, HEIGHT)
        record.objects = draw(st.lists(boxes(), max_size=4))
        if record.objects:
            ends = st.integers(0, len(record.objects) - 1)
            relation = st.builds(Relation, ends, ends, st.sampled_from(["on", "p" * 300, "über"]))
            record.relations = draw(st.lists(relation, max_size=4))
        drawn.append(record)
    return drawn


def round_trip(
    originals: list[Record], form: str, source: Callable[[Path, str], AnnotationSource]
) -> list[Record]:
    """The records of each split, exported and imported again."""
    with TemporaryDirectory() as folder:
        run = make_shards(Path(folder) / "run", sorted(originals, key=lambda record: record.split))
        out = export_run(run, form, Path(folder) / "out").root
        splits = sorted({record.split for record in originals})
        return [
            r for split in splits for r in imported(source(out, split), out, Path(folder) / split)
        ]


def bare(records: list[Record], **changes: Any) -> list[Record]:
    """Records by split and id, with other values in their objects: what a form does not hold."""
    stripped = [
        replace(record, objects=[replace(box, category_id=0, **changes) for box in record.objects])
        for record in records
    ]
    return sorted(stripped, key=lambda record: (record.split, record.image_id))


@given(graphs(("test", "train", "val", "mine")))
@settings(max_examples=15, deadline=None)
def test_psg_comes_back_as_it_was(originals):
    returned = round_trip(originals, "psg", lambda out, split: psg_source(out / "psg.json", split))
    assert bare(returned) == bare(originals, attributes=[])


def test_panoptic_pngs_and_stuff_come_back(tmp_path):
    source = psg_source(psg(tmp_path), "train", tmp_path)
    before = imported(source, tmp_path, tmp_path / "run")
    exported = export_run(tmp_path / "run", "psg", tmp_path / "out")
    content = json.loads((tmp_path / "out/psg.json").read_text())
    assert (content["thing_classes"], content["stuff_classes"]) == (
        ["person", "dog"],
        ["grass-merged"],
    )
    assert [segment["isthing"] for segment in content["data"][0]["segments_info"]] == [0, 1, 1]
    assert [segment["area"] for segment in content["data"][0]["segments_info"]] == [
        96 - 12 - 20,
        12,
        20,
    ]
    for entry in content["data"][0]["annotations"]:
        del entry["segmentation"]
    (tmp_path / "out/psg.json").write_text(json.dumps(content))
    returned = imported(
        psg_source(tmp_path / "out/psg.json", "train", tmp_path / "out"),
        tmp_path,
        tmp_path / "again",
    )
    assert returned == before
    assert exported.left_out == {}
    assert (
        Manifest.load(tmp_path / "again").run["labels"]
        == Manifest.load(tmp_path / "run").run["labels"]
    )


def vg150(folder: Path, **changes: Any) -> tuple[Path, Path, Path]:
    """The files of VG150, `changes` in the HDF5. Of 8 images 1 has no boxes, 2 no relations; 5 to 7
    are for testing.
    """
    first = [0, -1, 2, 4, 6, 8, 10, 12]
    related = [0, -1, -1, 1, 2, 3, 4, 5]
    tables = {
        "split": [0] * 5 + [2] * 3,
        **{"img_to_first_box": first, "img_to_last_box": [1, -1, 3, 5, 7, 9, 11, 13]},
        **{"img_to_first_rel": related, "img_to_last_rel": related},
        "boxes_1024": [[100, 300, 200, 100], [512, 512, 101, 200]] * 7,
        **{"labels": [[1], [2]] * 7, "attributes": [[0, 0, 0], [2, 0, 1]] * 7},
        **{"relationships": [[at, at + 1] for at in (0, 4, 6, 8, 10, 12)], "predicates": [[2]] * 6},
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
    assert [row.image_id for row in rows] == [str(n) for n in range(8)]
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
        return "".join(row.image_id for row in rows)

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
        box.bbox = tuple(
            round(number, 6) for number in box.bbox
        )  # 1024 is the longer side in the file
    assert returned == bare(originals, segmentation=None)


def test_numbered_splits_of_merged_runs_stay_on_their_side(tmp_path):
    graph = {"objects": [Box("dog", 0, (0, 0, 4, 4))], "relations": [Relation(0, 0, "on")]}
    splits = ("all", "test", "test_2", "train", "train_2", "val", "val_2")
    originals = [
        Record("7", "coco", split, f"{split}.jpg", WIDTH, HEIGHT, **graph) for split in splits
    ]
    run = make_shards(tmp_path / "run", originals)
    content = json.loads((export_run(run, "psg", tmp_path / "psg").root / "psg.json").read_text())
    ids = {image["file_name"]: image["image_id"] for image in content["data"]}
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
        assert {record.file_name for record in returned} == {f"{name}.jpg" for name in names}
    with pytest.raises(
        UserError,
        match="has no split 'x': pass --split train, test_2, train_2, val, val_2, test or all",
    ):
        psg_source(tmp_path / "psg/psg.json", "x")
    out = export_run(run, "vg150", tmp_path / "vg150").root
    listed = json.loads((out / "image_data.json").read_text())
    assert len({image["image_id"] for image in listed}) == len(splits)
    with h5py.File(out / "VG-SGG-with-attri.h5") as file:
        sides = dict(
            zip((image["file_name"] for image in listed), file["split"][()].tolist(), strict=True)
        )
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


def svg_form(records: list[Record]) -> dict[str, Any]:
    """Objects by ids that count down, so that they are not positions."""
    form = {}
    for record in records:
        things: dict[str, Any] = {}
        for index, box in enumerate(record.objects):
            x, y, w, h = box.bbox
            stated = [relation for relation in record.relations if relation.subject == index]
            things[str(100 - index)] = {
                "name": box.category,
                "bbox": [x, y, x + w, y + h],
                "attributes": [attribute.name for attribute in box.attributes],
                "segmentation": box.segmentation and json.loads(box.segmentation),
                "relations": [
                    {"object": str(100 - item.object), "name": item.predicate} for item in stated
                ],
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
        with pytest.raises(UserError, match="contains no image to import"):
            imported(svg_source(tmp_path / "sg.json", "train"), tmp_path, tmp_path / "other")


def vertex(
    name: str, label: str, *texts: str, into: str | None = None, to: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "vertex_id": name,
        "bbox": {"left": 0.25, "top": 0.5, "right": 0.75, "bottom": 1.0, "confidence": 0.75},
        "label": label,
        "descs": [{"text": text, "label": "short"} for text in texts],
        "in_edges": [] if into is None else [{"source": "", "text": into, "target": name}],
        "out_edges": [{"source": name, "text": target, "target": target} for target in to],
    }


GRAPH = {
    "vertices": [
        vertex("", "image", "A horse and trees.", to=("horse", "trees", "[horse|trees]")),
        vertex("horse", "entity", "A brown horse.", into="brown horse"),
        vertex(
            "trees",
            "composition",
            "Tree 1 is left of tree 2.",
            into="trees",
            to=("trees_0", "trees_1"),
        ),
        vertex("trees_0", "entity", into="tree 1"),
        vertex("trees_1", "entity", into="tree 2"),
        vertex(
            "[horse|trees_0]", "relation", "The horse is under a tree.", to=("horse", "trees_0")
        ),
        vertex("[horse|trees]", "relation", "Trees are behind it.", to=("horse", "trees")),
    ],
    **{"img_path": "wiki/horses.jpg", "img_url": None, "img_size": [80, 40]},
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
    assert [row.image_id for row in rows] == ["a/1", "b/1", graphs_of_paths[-1]["img_url"]]
    assert [row.ok for row in rows] == [True, True, False]
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
    assert all(row.error for row in failed)


def test_cut_lines_and_other_items_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(GRAPH) + "\n" + json.dumps(GRAPH)[:50])
    with pytest.raises(UserError, match=r"a.jsonl: line 2 is not JSON, or is cut short"):
        list(gbc_source(tmp_path / "a.jsonl", tmp_path, "all").read(Counter()))
    (tmp_path / "a.jsonl").write_text("[1]\n7\n" + json.dumps(GRAPH))
    (row,) = imported(gbc_source(tmp_path / "a.jsonl", tmp_path, "all"), tmp_path, tmp_path / "run")
    assert row.ok
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.malformed"] == 2
