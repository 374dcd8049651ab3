import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.images import is_upright
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.label_studio import label_studio_source
from tests.values import values_of

WIDTH = 200
HEIGHT = 100

ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["r1", "on"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["x", "text", "id"]), inner)
    ),
    max_leaves=3,
)


def region(
    number: int, name: str | None = "dog", x: float = 10, **changes: object
) -> dict[str, Any]:
    """A box of 20 x 10 pixels at 2 `x`, 50, as Label Studio 1.23 exports it."""
    value = {"x": x, "y": 50, "width": 10, "height": 10, "rotation": 0}
    value |= {"rectanglelabels": [] if name is None else [name]}
    sizes = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    names = {"from_name": "label", "to_name": "image", "origin": "manual"}
    return {
        "id": f"r{number}",
        "type": "rectanglelabels",
        **names,
        **sizes,
        "value": value,
        **changes,
    }


def link(first: int, second: int, *labels: str, **changes: object) -> dict[str, Any]:
    ends = {"from_id": f"r{first}", "to_id": f"r{second}"}
    return {"type": "relation", **ends, "direction": "right", "labels": list(labels), **changes}


def annotation(*results: object, **changes: Any) -> dict[str, Any]:
    return {
        "id": 1,
        "completed_by": 1,
        "was_cancelled": False,
        "ground_truth": False,
        "result": [*results],
        **changes,
    }


def task(*results: object, **changes: Any) -> dict[str, Any]:
    data = {"image": "/data/upload/1/0a1b2c3d-photo.jpg"}
    return {
        "id": 5,
        "data": data,
        "annotations": [annotation(*results)],
        "predictions": [],
        **changes,
    }


def read(folder: Path, *tasks: object, **options: Any) -> tuple[list[Record], dict[str, int]]:
    path = folder / "project-1.json"
    path.write_text(json.dumps(tasks))
    problems: Counter[str] = Counter()
    return list(label_studio_source(path, folder, **options).read(problems)), +problems


def box(name: str = "dog", x: float = 20.0, number: int = 0, crowd: bool = False) -> Box:
    return Box(name, number, (x, 50.0, 20.0, 10.0), crowd)


def test_an_annotated_task_is_an_image(tmp_path):
    imported, problems = read(
        tmp_path, task(region(1), link(1, 2, "on", "next to"), region(2, "cup", 40))
    )
    record = Record(
        "5", "label_studio", "all", "photo.jpg", WIDTH, HEIGHT, [box(), box("cup", 80.0)]
    )
    record.relations = [Relation(0, 1, "on"), Relation(0, 1, "next to")]
    assert (imported, problems) == ([record], {})
    assert is_upright("label_studio")  # browsers turn images as EXIF says


def test_the_direction_of_a_link_says_which_box_is_the_subject(tmp_path):
    directions = {"right": [(0, 1)], "left": [(1, 0)], "bi": [(0, 1), (1, 0)], None: [(0, 1)]}
    tasks = [
        task(region(1), region(2), link(1, 2, "on", direction=direction))
        for direction in directions
    ]
    imported = values_of(read(tmp_path, *tasks)[0], "relations")
    assert imported == [[Relation(*pair, "on") for pair in pairs] for pairs in directions.values()]


def test_what_is_no_labelled_rectangle_is_counted(tmp_path):
    polygon = {
        "id": "r3",
        "type": "polygonlabels",
        "value": {"points": [[1, 1]], "polygonlabels": ["dog"]},
    }
    choice = {"type": "choices", "from_name": "quality", "value": {"choices": ["good"]}}
    results = [
        region(1),
        polygon,
        choice,
        region(2, None),
        region(4, " "),
        region(5, item_index=1),
        "?",
    ]
    links = [
        link(1, 3, "on", "by"),
        link(1, 2, "on"),
        link(1, 1),
        link(1, 1, " "),
        link(1, 1, "on"),
    ]
    (imported,), problems = read(tmp_path, task(*results, *links))
    assert (imported.objects, imported.relations) == ([box()], [Relation(0, 0, "on")])
    assert problems == {
        "other_results": 4,
        "nameless": 4,
        "unknown_object": 2,
        "relations_of_dropped_boxes": 1,
    }


def test_labels_may_be_apart_from_their_rectangle(tmp_path):
    """As the tags Rectangle and Labels write them."""
    value = region(1)["value"]
    del value["rectanglelabels"]
    parts = (
        region(1, type="rectangle", value=value),
        region(1, type="labels", value=value | {"labels": ["dog"]}),
    )
    (imported,), problems = read(tmp_path, task(*parts, link(1, 1, "on")))
    assert (imported.objects, imported.relations, problems) == ([box()], [Relation(0, 0, "on")], {})


@pytest.mark.parametrize(
    ("results", "data"),
    [
        ([region(1, image_rotation=90)], {}),
        *(
            ([region(1, value=region(1)["value"] | odd)], {})
            for odd in ({"x": "?"}, {"rectanglelabels": 1}, {"rotation": 9})
        ),
        *(
            ([region(1), link(1, 1, "on", **odd)], {})
            for odd in ({"direction": "up"}, {"scores": []}, {"scores": [2]})
        ),
        ([], {}),
        *(
            ([region(1)], {"image": image})
            for image in (None, ["1.jpg"], "https://example.org/", "http://[")
        ),
        ([region(1)], {"image": "data:image/png;base64,AA=="}),
    ],
)
def test_an_invalid_task_is_an_error_row(tmp_path, results, data):
    valid = task(*results)
    (imported,), _ = read(tmp_path, valid | {"data": valid["data"] | data})
    assert imported.error
    assert (imported.image_id, imported.objects) == ("5", [])


def test_of_several_annotations_the_ground_truth_counts_or_the_last_one(tmp_path):
    early, late = ({"updated_at": f"2026-01-0{day}T00:00:00Z"} for day in (1, 2))
    last, *earlier = annotation(region(1, "cup"), **late), annotation(region(1), **early)
    true = annotation(region(1), **early, ground_truth=True)
    imported, problems = read(
        tmp_path, task(annotations=[last, *earlier]), task(annotations=[last, true])
    )
    assert values_of(imported, "objects") == [[box("cup")], [box()]]
    assert problems == {"further_annotations": 2}


@pytest.mark.parametrize("annotator", ["2", "anna@example.org"])
def test_the_annotations_of_one_person_can_be_read(tmp_path, annotator):
    person = {"id": 2, "email": "anna@example.org"}
    by_both = [
        annotation(region(1, "cup"), completed_by=1),
        annotation(region(1), completed_by=person),
    ]
    (imported,), problems = read(
        tmp_path, task(annotations=by_both), task(region(1)), annotator=annotator
    )
    assert (imported.objects, problems) == ([box()], {"unannotated_tasks": 1})


def test_tasks_that_nobody_annotated_are_left_out(tmp_path):
    skipped = task(annotations=[annotation(region(1), was_cancelled=True)])
    predicted = task(
        annotations=[], predictions=[{"result": [region(1, "cup")]}, {"result": [region(1)]}]
    )
    tasks = skipped, predicted, task(annotations=[])
    assert read(tmp_path, *tasks, task(region(1)))[1] == {
        "skipped_tasks": 1,
        "unannotated_tasks": 2,
    }
    (imported,), problems = read(tmp_path, *tasks, predictions=True)
    assert imported.objects == [box()]
    assert problems == {"skipped_tasks": 1, "unannotated_tasks": 1, "further_predictions": 1}


def test_tasks_of_several_splits_are_read_one_at_a_time(tmp_path):
    tasks = [
        task(id=n, data={"image": "1.jpg", "split": split})
        for n, split in enumerate(["val", "train", "?"])
    ]
    for annotated in tasks:
        annotated["data"] |= {"width": 8, "height": 8}
    imported, problems = read(tmp_path, *tasks, split="val")
    assert values_of(imported, "image_id", "split") == [("0", "val"), ("2", "val")]
    assert problems == {"other_splits": 1}
    for split, message in (
        (None, "has tasks of several splits"),
        ("test", "has no task of split 'test'"),
    ):
        with pytest.raises(UserError, match=f"{message}: pass --split train or val"):
            read(tmp_path, *tasks, split=split)


def test_files_are_found_by_the_address_of_the_image(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("val/a b.jpg", "0a1b2c3d-here.jpg"):
        (tmp_path / name).touch()
    names = {
        "/data/upload/3/0a1b2c3d-photo.jpg": "photo.jpg", "/data/upload/3/0a1b2c3d-here.jpg": "0a1b2c3d-here.jpg",
        "/data/local-files/?d=all/val/a%20b.jpg": "val/a b.jpg",
        "http://localhost:8080/data/local-files/?d=all%5Cval%5Ca+b.jpg": "val/a b.jpg",
        "https://example.org/x/val/a%20b.jpg?token=1": "val/a b.jpg", "s3://bucket/val/a b.jpg": "val/a b.jpg",
        "gs://bucket/other/missing%20file.jpg": "missing%20file.jpg", "../../etc/passwd": "passwd",
    }  # fmt: skip
    imported, _ = read(
        tmp_path, *(task(region(1), data={"photo": name}) for name in names), image_field="photo"
    )
    assert values_of(imported, "file_name", "status") == [(name, "ok") for name in names.values()]


def test_sizes_that_no_task_says_are_those_of_the_displayed_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (HEIGHT, WIDTH)).save(tmp_path / "1.jpg", exif=exif)
    plain = region(1)
    del plain["original_width"]
    (imported,), _ = read(tmp_path, task(plain, data={"image": "1.jpg"}))
    assert (imported.width, imported.height, imported.objects) == (WIDTH, HEIGHT, [box()])


def broken(valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A dictionary in which some values are others, or missing."""
    return st.dictionaries(st.sampled_from(sorted(valid)), ODD, max_size=2).map(
        lambda odd: valid | odd
    )


REGION = broken(region(1)["value"]).map(lambda value: region(2, value=value))
RESULTS = st.lists(
    ODD | broken(region(1)) | REGION | broken(link(1, 2, "on", scores=[0.5])), max_size=4
)
DATA = broken(
    {"image": "1.jpg", "file_name": "1.jpg", "width": 8, "height": 8, "category_ids": {"dog": 1}}
)


@given(RESULTS, broken(annotation()), broken(task()), DATA)
@settings(max_examples=30, deadline=None)
def test_nothing_in_a_task_stops_an_import(results, person_annotation, broken_task, data):
    person_annotation = (
        person_annotation | {"result": results}
        if person_annotation["result"] == []
        else person_annotation
    )
    broken_task = (
        {**broken_task, "data": data} if isinstance(broken_task["data"], dict) else broken_task
    )
    broken_task = (
        {**broken_task, "annotations": [person_annotation, None]}
        if isinstance(broken_task["annotations"], list)
        else broken_task
    )
    if isinstance(broken_task["predictions"], list):  # numbers are refused
        broken_task["predictions"] = [
            prediction
            for prediction in broken_task["predictions"]
            if not isinstance(prediction, int)
        ]
    with TemporaryDirectory() as folder:
        imported, problems = read(Path(folder), task(region(1)), broken_task, predictions=True)
    assert imported[0].objects == [box()]
    left_out = ("malformed", "unannotated_tasks", "skipped_tasks", "other_splits")
    assert len(imported) + sum(problems.get(name, 0) for name in left_out) == 2
    for record in imported:
        assert record.ok or (record.error and not record.objects)
        assert all(
            0 <= end < len(record.objects)
            for item in record.relations
            for end in (item.subject, item.object)
        )
