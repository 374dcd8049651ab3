import json
import re
from collections import Counter
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest

from sgpipe.miniworld.dataset import render_dataset
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.records import NO_OBJECT, Box, Caption, Record
from sgpipe.sources.coco import coco_source
from sgpipe.stats.audit import Audit
from sgpipe.stats.measures import DOUBTS, Check, check_health, measure
from sgpipe.storage.health_rules import RULES
from sgpipe.storage.index import open_run
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.config_file import parse_set
from tests.sgpipe.stats.runs import CUP, PERSON, make_shards, scene
from tests.values import values_of

UP = Box("cup", 3, (10, 10, 20, 20))
DOWN = Box("table", 4, (10, 100, 60, 40))
FAR = Box("skateboard", 5, (280, 200, 20, 10))

PLANTED = [
    ("repeated_relations", scene("102", [(0, "near", 1), (0, "near", 1)]), "person near dog"),
    ("self_relations", scene("103", [(1, "near", 1)]), "dog near dog"),
    ("contradictions", scene("104", [(1, "behind", 2), (2, "behind", 1)]), "dog behind cup / cup behind dog"),
    ("contradictions", scene("124", [(0, "to left of", 1), (0, "right of", 1)], [CUP, Box("dog", 2, (25, 30, 20, 20))]),
     "cup right of dog / cup to left of dog"),
    ("contradictions", scene("105", [(0, "on", 2), (0, "Under", 2)]), "person Under cup / person on cup"),
    ("impossible_places", scene("106", [(1, "on", 0)], [UP, DOWN]), "table on cup"),
    ("impossible_places", scene("107", [(0, "under", 1)], [UP, DOWN]), "cup under table"),
    ("impossible_places", scene("108", [(0, "inside", 1)], [UP, DOWN]), "cup inside table"),
    ("impossible_places", scene("109", [(0, "to the right of", 1)]), "person to the right of dog"),
    ("impossible_places", scene("110", [(1, "left of", 0)]), "dog left of person"),
    ("far_apart", scene("111", [(0, "holding", 1)], [PERSON, FAR]), "person holding skateboard"),
    ("no_relation", scene("113", [(0, "the", 1)]), "“the” in person the dog"),
    ("no_relation", scene("114", [(0, "is just about to go into", 1)]), "“is just about to go into” in "
     "person is just about to go into dog"),
    ("no_relation", scene("115", [(0, "3 of", 1)]), "“3 of” in person 3 of dog"),
    ("no_relation", scene("116", [(0, "dog", 1)]), "“dog” in person dog dog"),
    ("tiny_boxes", scene("117", objects=[PERSON, Box("cup", 3, (5, 5, 3, 30))]), "cup of 3.0 × 30.0"),
    ("repeated_boxes", scene("118", objects=[PERSON, CUP, Box("cup", 3, (30, 30, 10, 10.5))]), "cup"),
    ("same_captions", scene("119", captions=["A dog on the table.", "a dog on a table", "a dog"]),
     "A dog on the table. / a dog on a table"),
    ("degenerate_captions", scene("120", captions=["a dog is is is here"]), "a dog is is is here"),
    ("degenerate_captions", scene("123", captions=["A dog: dog, dog."]), "A dog: dog, dog."),
    ("degenerate_captions", scene("121", captions=["dog"]), "dog"),
    ("degenerate_captions", scene("122", captions=["a dog a dog a dog a dog"]), "a dog a dog a dog a dog"),
]  # fmt: skip

FORMS = {
    "corners": lambda x, y, w, h, image: [x, y, x + w, y + h],
    "centres": lambda x, y, w, h, image: [x + w / 2, y + h / 2, w, h],
    "parts": (
        lambda x, y, w, h, image: np.divide(
            (x, y, w, h), (image["width"], image["height"]) * 2
        ).tolist()
    ),
}


def check_run(tmp_path, records: list[Record], threshold: float = 0.2) -> dict[str, Check]:
    make_shards(tmp_path / "run", records)
    with open_run(tmp_path / "run") as database:
        return {check.name: check for check in check_health(database, threshold) if check.count}


def test_each_check_finds_what_it_is_for_and_nothing_else(tmp_path):
    clean = scene(
        "1",
        [(0, "next to", 1), (1, "next to", 0), (2, "on", 0)],
        captions=["a dog", "a person and a dog"],
    )
    checks = check_run(tmp_path, [clean, *(record for _, record, _ in PLANTED)])
    assert checks.keys() == {name for name, *_ in PLANTED}
    for name, check in checks.items():
        wanted = {
            record.image_id: text for check_name, record, text in PLANTED if check_name == name
        }
        assert check.count == len(wanted)
        assert check.share == check.count / check.total < 0.5
        assert dict(values_of(check.examples, "image_id", "text")) == wanted


def test_datasets_with_other_classes(tmp_path):
    def images(dataset: str, *classes: str) -> list[Record]:
        boxes = [Box(name, 3, (30, 30, 10, 10)) for name in classes]
        return [
            scene(f"{dataset}{n}", objects=[PERSON, boxes[n % 3]], dataset=dataset)
            for n in range(60)
        ]

    records = [*images("one", "cup", "dog", "car"), *images("two", "cup", "dog", "bus")]
    # "car" and "bus" occur 20 times each: too few to be told from chance.
    assert not check_run(tmp_path / "few", records)
    check = check_run(tmp_path / "many", [record for record in records for _ in range(3)])[
        "uneven_classes"
    ]
    assert values_of(check.examples, "text") == [
        f"{n}: 16.7% of one, 0.0% of another" for n in ("car", "bus")
    ]
    assert check.count == 120


def test_relations_below_the_threshold_crowds_and_missing_objects_are_no_fault(tmp_path):
    crowd = [Box("cup", 3, (30, 30, 10, 10), True), Box("cup", 3, (30, 30, 10, 10), True)]
    smiling = scene("2", [(0, "smiling", 1)], [PERSON, Box(NO_OBJECT, 0, (0, 0, 0, 0))])
    assert not check_run(
        tmp_path, [scene("0", [(1, "near", 1, 0.1)]), scene("1", objects=crowd), smiling]
    )
    with open_run(tmp_path / "run") as database:
        assert [check.name for check in check_health(database, 0.05) if check.count] == [
            "self_relations"
        ]


def test_the_drawn_world_is_clean(drawn_run, tmp_path):
    spoken = json.loads((drawn_run.parent / "drawn" / "captions.json").read_text())["annotations"]
    records = {record.image_id: record for record in iter_records(drawn_run)}
    for caption in spoken:
        records[str(caption["image_id"])].captions.append(Caption(caption["caption"]))
    assert len(spoken) > 20
    assert not check_run(tmp_path, list(records.values()))


def test_every_setting_that_an_advice_names_is_accepted_by_the_recipe():
    named = [
        setting
        for rule in RULES
        for setting in re.findall(r"`(\w+(?:\.\w+)+(?:=[^`]*)?)`", rule.advice)
    ]
    assert {"caption.repetition_penalty", "pair.require_overlap=true"} <= set(named)
    for setting in named:
        key, _, value = setting.partition("=")
        default = attrgetter(key)(Recipe())
        changed = load_recipe("coco", parse_set([setting]) if value else {key: default})
        assert not value or attrgetter(key)(changed) != default


@pytest.fixture(scope="module", params=["drawn", "coco_mini"])
def annotated(request, tmp_path_factory) -> Callable[[], tuple[dict, dict]]:
    """The instances and captions of synthetic images, and of real ones."""
    folder = tmp_path_factory.mktemp("drawn")
    form = "{}"
    if request.param == "drawn":
        render_dataset(folder, 60, 0, "val")
    else:
        folder = request.getfixturevalue("oracle") / "data" / request.param
        form = "{}_val2017"
    texts = [
        (folder / f"{form.format(kind)}.json").read_text() for kind in ("instances", "captions")
    ]
    return lambda: tuple(map(json.loads, texts))


def records_of(folder: Path, instances: dict, captions: dict, shift: int = 0) -> list[Record]:
    """The records of COCO's files, with the captions of other images if there is a `shift`."""
    images = values_of(instances["images"], "id")
    owner = dict(zip(images, np.roll(images, -shift).tolist(), strict=True))
    for entry in captions["annotations"]:
        entry["image_id"] = owner.get(entry["image_id"], entry["image_id"])
    for name, content in {"instances": instances, "captions": captions}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return list(
        coco_source(folder / "instances.json", "val", folder / "captions.json").read(Counter())
    )


@pytest.mark.slow
def test_right_data_is_not_doubted_nor_a_few_images_of_it(annotated, tmp_path):
    records = records_of(tmp_path, *annotated())
    for number in (1, 12, len(records)):
        assert not DOUBTS & check_run(tmp_path / str(number), records[:number]).keys()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_boxes_of_another_form_are_named(annotated, tmp_path, form):
    instances, captions = annotated()
    images = {entry["id"]: entry for entry in instances["images"]}
    for entry in instances["annotations"]:
        entry["bbox"] = FORMS[form](*entry["bbox"], images[entry["image_id"]])
    checks = check_run(tmp_path, records_of(tmp_path, instances, captions))
    fault = "boxes_in_parts" if form == "parts" else "clipped_boxes"
    assert checks.keys() & DOUBTS == {fault}
    assert checks[fault].share > 0.25
    assert Audit(measure(tmp_path / "run")).findings[-1].text != "No problems found."


@pytest.mark.slow
def test_captions_of_other_images_are_named(annotated, tmp_path):
    for shift in (1, 2, -1):
        check = check_run(tmp_path / str(shift), records_of(tmp_path, *annotated(), shift))[
            "foreign_captions"
        ]
        assert check.examples[0].text.endswith(" in others")
    assert Audit(measure(tmp_path / "1" / "run")).findings[-1].grade == "bad"


def test_boxes_with_the_names_of_other_classes_are_named(annotated, tmp_path):
    instances, captions = annotated()
    ids = values_of(instances["categories"], "id")
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    for annotation in instances["annotations"]:
        annotation["category_id"] = following[annotation["category_id"]]
    checks = check_run(tmp_path, records_of(tmp_path, instances, captions))
    if len(ids) == 80:  # 79 images are too few to tell which of 80 classes is which
        assert checks.keys() & DOUBTS == {"foreign_captions"}
        return
    check = checks["foreign_classes"]
    assert (check.count, check.share) == (check.total, 1)
    assert all(
        re.fullmatch("captions name “.*” where boxes are “.*”", example.text)
        for example in check.examples
    )
