"""`sgpipe train layout`: a model from the annotated relations of a run."""

import random
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Record, Relation
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.training import layout
from sgpipe.training.layout import train_layout
from sgpipe.utils.console import Progress
from tests.sgpipe.training.data.runs import make_run


def made_record(number: int, *, negatives: bool = True) -> Record:
    """A person holds the cup that its box has; another cup is far away, one box is a crowd."""
    chance = random.Random(number)
    left = chance.uniform(0, 40)
    boxes = [Box("person", 1, (left, 10, 40, 80)), Box("cup", 2, (left + 10, 40, 8, 8))]
    if negatives:
        boxes += [
            Box("cup", 2, (150 + left, 40, 8, 8)),
            Box("person", 1, (120, 5, 60, 90), iscrowd=True),
        ]
    relations = [Relation(0, 1, "holding"), Relation(0, 1, "near", 0.1), Relation(0, 0, "near")]
    return Record(
        str(number), "made", "train", f"{number}.png", 240, 100, boxes, relations=relations
    )


def run_of(folder: Path, number: int, **changes: bool) -> str:
    records = [made_record(index, **changes) for index in range(number)]
    records.append(
        Record("bare", "made", "train", "bare.png", 240, 100, [Box("person", 1, (0, 0, 9, 9))])
    )
    make_run(folder, records, rows=25)
    return str(folder)


@pytest.mark.slow
def test_a_model_learns_the_relations_of_a_run(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", 60)
    trained = train_layout([run], tmp_path / "model", Progress(), epochs=40)
    model = LayoutModel.load(tmp_path / "model")
    assert (model.actions, model.subject_classes, model.classes) == (
        ("holding",),
        ("person",),
        ("cup", "person"),
    )
    assert (trained.images, trained.of_images, trained.pairs, trained.held_out) == (60, 60, 60, 6)
    assert (trained.precision, trained.recall) == (1.0, 1.0)


@pytest.mark.slow
def test_few_images_are_seen_as_often_as_it_takes_to_learn_from_them(tmp_path: Path) -> None:
    """An epoch of 60 images is a single step."""
    run = run_of(tmp_path / "run", 60)
    trained = train_layout([run], tmp_path / "model", Progress())
    assert (trained.precision, trained.recall) == (1.0, 1.0)


def test_the_same_data_give_the_same_bytes_and_more_images_than_the_limit_are_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path / "run", 40)
    monkeypatch.setattr(layout, "MOST_IMAGES", 15)
    for name in ("one", "other"):
        trained = train_layout([run], tmp_path / name, Progress(), epochs=1)
    train_layout([run], tmp_path / "seed", Progress(), epochs=1, seed=1)
    contents = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other", "seed")
    ]
    assert (trained.images, trained.of_images) == (15, 40)
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    ("images", "negatives", "message"), [(1, True, "1 image with"), (20, False, "do nothing")]
)
def test_what_nothing_can_be_learned_from_is_one_line(
    tmp_path: Path, images: int, negatives: bool, message: str
) -> None:
    run = run_of(tmp_path / "run", images, negatives=negatives)
    with pytest.raises(UserError, match=message) as caught:
        train_layout([run], tmp_path / "model", Progress(), epochs=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_rare_predicates_and_crowded_images_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = list(map(made_record, range(20)))
    records[0].relations.append(Relation(0, 2, "seeing"))
    records[1].objects += [Box("cup", 2, (0, 0, 5, 5))] * 10
    make_run(tmp_path / "run", records, rows=25)
    monkeypatch.setattr(layout, "MOST_PREDICATES", 1)
    monkeypatch.setattr(layout, "MOST_BOXES", 5)
    trained = train_layout([str(tmp_path / "run")], tmp_path / "model", Progress(), epochs=1)
    assert LayoutModel.load(tmp_path / "model").actions == ("holding",)
    assert (trained.images, trained.pairs) == (19, 20)
