"""The figures on photographs, of three invented images whose numbers are counted by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import photographs as page
from experiments.photographs import Measured, Photographs, count_found, measure, read_photographs
from sgpipe.records import Box, Record, Relation

pytestmark = pytest.mark.slow

CLASSES = ["person", "horse", "chair", "dog", "frisbee", "cup", "bottle"]
# Boxes of 20 x 20 pixels by their left sides: only those of the person and the horse overlap.
BOXES = {
    1: [("person", 0), ("horse", 10)],
    2: [("person", 0), ("chair", 30), ("dog", 60), ("frisbee", 90)],
    3: [("person", 0), ("cup", 30), ("bottle", 60)],
    4: [("person", 0), ("dog", 10)],  # without relations: left out
}
CAPTIONS = {
    1: ["A man riding a horse.", "A brown horse."], 2: ["A dog next to a man.", "A frisbee."],
    3: ["A woman carrying a cup.", "A bottle on a table."], 4: ["A man with a dog."],
}  # fmt: skip
RELATIONS = [
    (1, "person", "ride", "horse"),
    (1, "person", "look at", "horse"),
    (2, "person", "sit on", "chair"),
    (2, "person", "catch", "frisbee"),
    (3, "person", "hold", "cup"),
    (3, "person", "drink", "bottle"),
]


def number(image: int, name: str) -> int:
    return 10 * image + [box for box, _ in BOXES[image]].index(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    boxes: list[dict[str, Any]] = [
        {"id": number(image, name), "image_id": image, "category_id": 1 + CLASSES.index(name)}
        | {"bbox": [left, 0, 20, 20], "area": 400, "iscrowd": 0}
        for image, box in BOXES.items()
        for name, left in box
    ]
    images = [
        {"id": image, "file_name": f"{image}.jpg", "width": 200, "height": 100} for image in BOXES
    ]
    categories = [{"id": 1 + place, "name": name} for place, name in enumerate(CLASSES)]
    captions = [
        {"image_id": image, "caption": text} for image, texts in CAPTIONS.items() for text in texts
    ]
    relations = [
        {
            "image_id": image,
            "subject_id": number(image, one),
            "predicate": verb,
            "object_id": number(image, other),
        }
        for image, one, verb, other in RELATIONS
    ]
    for name, content in {
        "instances": {"images": images, "annotations": boxes, "categories": categories},
        "captions": {"images": images, "annotations": captions},
        "relations": relations,
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def measured(folder: Path) -> Measured:
    return measure(
        read_photographs(
            *(folder / f"{name}.json" for name in ("instances", "captions", "relations"))
        )
    )


@pytest.mark.parametrize(
    ("candidates", "method", "labelled", "in_scope", "candidate_pairs", "verbs"),
    [
        ("captions", "all", 3, 2, 2, 2),  # man-horse, dog-man, woman-cup; carrying counts as hold
        ("captions", "overlap", 1, 1, 1, 1),
        ("image", "all", 2 + 12 + 6, 1 + 3 + 2, 5, 2),
        ("image", "overlap", 2, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("parser", ["rules", "learned"])
def test_pairs_and_verbs_are_counted_by_parser_candidates_and_method(
    measured: Measured,
    parser: str,
    candidates: str,
    method: str,
    labelled: int,
    in_scope: int,
    candidate_pairs: int,
    verbs: int,
) -> None:
    columns = (
        page.ANNOTATED,
        page.VERBS,
        page.LABELLED,
        page.IN_SCOPE,
        page.FOUND,
        page.VERBS_FOUND,
    )
    totals = [measured.total(column, parser, candidates, method, 2) for column in columns]
    assert totals == [5, 6, labelled, in_scope, candidate_pairs, verbs]


def test_pairs_between_subjects_are_counted_apart() -> None:
    """Two people, of whom one holds the other's hand: both orders are labelled, one is
    annotated.
    """
    boxes = [
        Box("person", 1, (0, 0, 9, 9)),
        Box("person", 1, (5, 0, 9, 9)),
        Box("dog", 2, (9, 0, 9, 9)),
    ]
    truth = Record(
        "1", "coco", "all", "1.jpg", 50, 50, objects=boxes, relations=[Relation(0, 1, "hold")]
    )
    labels = [
        Relation(0, 1, "hugging", 1.0),
        Relation(1, 0, "hugging", 1.0),
        Relation(0, 2, "with", 1.0),
    ]
    [counts] = count_found(
        Photographs([truth], ("person", "dog")), [replace(truth, relations=labels)]
    ).tolist()
    assert counts[page.FOUND : page.IN_SCOPE + 1] == [1, 1, 3, 3]
    assert (counts[page.BETWEEN_FOUND], counts[page.BETWEEN]) == (1, 2)


def test_the_page_is_written_from_files_of_any_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    out.write_text(f"earlier{page.TIMED}\nseconds\n")
    page.main(truth=folder / "relations.json", out=out)
    text = out.read_text()
    assert "earlier" not in text
    assert text.endswith(f"|\n{page.TIMED}\nseconds\n")
    assert "3 COCO photographs" in text
    assert "| captions | all | 2 | rules | 40.0% (" in text
    assert "| rules | 2 | 3 | 1 | 1 | 1 | 1 |" in text
    assert "Classes not named: chair (1)." in text
    assert "| hold | carry," in text
