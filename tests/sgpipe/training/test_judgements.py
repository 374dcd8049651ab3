"""What people judged teaches the R-Tagger: right relations, and wrong ones of exactly their pair
and text.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from rlip_model.relation_losses import focal_loss
from sgpipe.cli.train import ShardsOptions
from sgpipe.errors import UserError
from sgpipe.records import Relation
from sgpipe.storage.judgement_lines import Judgement, RelationKey
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.training.data.judged import JudgedRelation, judged_relations
from sgpipe.training.data.scan import scan_training
from sgpipe.training.data.stream import ShardFeed, StepStream
from sgpipe.training.job import TrainingJob
from sgpipe.training.recipe import DataConfig, ShardsConfig, TrainRecipe
from sgpipe.training.run import _identity
from tests.sgpipe.stats.runs import judge
from tests.sgpipe.training.data.runs import data, make_run, plain_record

RIGHT = {"judgement": "right"}


def write_answers(root: Path, *lines: tuple[RelationKey, dict], by: str = "anna") -> None:
    with (root / JUDGEMENTS).open("a", encoding="utf-8") as file:
        for number, (key, fields) in enumerate(lines):
            values = {
                "id": f"{by}-{number}",
                "at": "",
                "by": by,
                "run": "drawn",
                **key._asdict(),
                **fields,
            }
            file.write(Judgement.model_validate(values).model_dump_json() + "\n")


def key(image: int, predicate: str = "on", subject: int = 0, object_: int = 1) -> RelationKey:
    return RelationKey("train", str(image), subject, object_, predicate)


def test_what_people_say_becomes_positives_and_negatives(tmp_path: Path) -> None:
    make_run(tmp_path, [plain_record(str(n), confidence=0.9) for n in range(6)])
    write_answers(
        tmp_path, (key(0), {"judgement": "right"}), (key(1), {"judgement": "wrong"}),
        (key(2), {"change": {"action": "predicate", "predicate": "under"}}), (key(3), {"judgement": "unsure"}),
        (key(4), {"judgement": "right"}), (key(5, "near", 1, 0), {"change": {"action": "add"}}),
    )  # fmt: skip
    write_answers(tmp_path, (key(4), {"judgement": "wrong"}), by="bob")  # they disagree
    assert judged_relations(str(tmp_path))[0] == {
        ("train", "0"): [JudgedRelation(0, 1, "on", True, 1)],
        ("train", "1"): [JudgedRelation(0, 1, "on", False, 1)],
        ("train", "2"): [
            JudgedRelation(0, 1, "on", False, 1),
            JudgedRelation(0, 1, "under", True, 1),
        ],
        ("train", "5"): [JudgedRelation(1, 0, "near", True, 1)],
    }


@pytest.mark.slow
def test_bands_of_which_many_were_asked_count_less(tmp_path: Path) -> None:
    confidences = [0.05] * 40 + [0.9] * 10
    make_run(
        tmp_path,
        [plain_record(str(n), confidence=confidence) for n, confidence in enumerate(confidences)],
    )
    judge(tmp_path, 10, lambda question: "right" if question.confidence > 0.5 else "wrong")
    examples = [
        one
        for judged_relation in judged_relations(str(tmp_path))[0].values()
        for one in judged_relation
    ]
    assert Counter((one.right, round(one.share, 6)) for one in examples) == {
        (False, 1.0): 5,
        (True, 0.25): 5,
    }
    settings = data(ShardsConfig(shards=tmp_path, judged=True), val=())
    fed = ShardFeed(StepStream(scan_training(settings), settings, 5, 0, 10), None, 10)
    labels = Counter[float]()
    with fed.read() as batches:
        for [batch] in islice(batches, 200):
            for image in batch.triplets:
                labels += Counter(image.relation_labels[~image.relation_labels.isnan()].tolist())
    # as in the run: 10 of 50 relations
    assert labels[1] / labels[0] == pytest.approx(0.25, rel=0.2)


def test_a_wrong_relation_lowers_the_score_of_exactly_its_pair_and_text(tmp_path: Path) -> None:
    record = plain_record("0", confidence=0.9)
    record.relations.append(Relation(1, 0, "holding", 0.9))
    other = plain_record("1", "under", confidence=0.9)
    config = make_run(tmp_path, [record, other])
    write_answers(tmp_path, (key(0), {"judgement": "wrong"}))
    settings = data(config, ShardsConfig(shards=tmp_path, judged=True), val=(), augment=None)
    fed = ShardFeed(StepStream(scan_training(settings), settings, 3, 0, 10), None, 10)
    with fed.read() as batches:
        [batch] = next(batches)
    assert len(batch) == 3  # the run's two images, and the judged one once more
    [judged] = [image for image in batch.triplets if image.relation_labels.isnan().any()]
    assert judged.relation_labels.shape[0] == 1  # no pair of which nobody said anything
    known = ~judged.relation_labels.isnan()
    logits = torch.zeros_like(judged.relation_labels, requires_grad=True)
    focal_loss(logits, judged.relation_labels).backward()
    assert known.sum() == 1
    assert (logits.grad[known] > 0).all()  # a step lowers it
    assert (logits.grad[~known] == 0).all()
    assert batch.texts.relations[int(known[0].nonzero())] == "on"


@pytest.mark.parametrize("random", [{}, {"limit_seed": 0}])
def test_a_limit_leaves_judgements_alone(tmp_path: Path, random: dict) -> None:
    config = make_run(tmp_path, [plain_record(str(n), confidence=0.9) for n in range(20)])
    write_answers(tmp_path, *((key(n), RIGHT) for n in range(12, 15)))
    training_set = scan_training(
        data(config, ShardsConfig(shards=tmp_path, judged=True), val=(), limit=8, **random)
    )
    assert [
        sum(group.rows for group in training_set.row_groups if group.folder == n) for n in range(2)
    ] == [8, 3]


def test_judgements_that_teach_nothing_are_named(tmp_path: Path) -> None:
    make_run(tmp_path, [plain_record(str(n), confidence=0.9) for n in range(3)])
    settings = data(ShardsConfig(shards=tmp_path, judged=True), val=(), negative_texts=0)
    (tmp_path / JUDGEMENTS).write_text("garbage\n")
    with pytest.raises(
        UserError, match=r"nobody has judged its relations: line 1 of .* cannot be read"
    ):
        scan_training(settings)
    write_answers(tmp_path, (key(99), RIGHT), (key(0, subject=999), RIGHT))
    with pytest.raises(UserError, match=r"no judged relations of .* can be used: .*; line 1 of"):
        scan_training(settings)
    write_answers(tmp_path, (key(0), RIGHT), (key(1), RIGHT), by="bob")
    training_set = scan_training(settings)
    assert (training_set.rows, training_set.relations.names) == (2, ("on",))
    assert [line.partition(" of ")[0] for line in training_set.notes][1:] == [
        "left out 2 judged relations",
        "line 1",
    ]


def test_a_certificate_is_needed_of_shards_that_are_not_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "sgpipe.cli.options.certified_threshold", lambda runs: {("a",): 0.5}[tuple(map(str, runs))]
    )
    options = ShardsOptions(data=["a"], judgements=["b"], certified=True)
    assert options.applied_to(DataConfig(), None).threshold == 0.5


def test_a_training_with_other_judgements_is_another_one(tmp_path: Path) -> None:
    make_run(tmp_path / "run", [plain_record("0"), plain_record("1")])
    part = ShardsConfig(shards=tmp_path / "run", judged=True)
    recipe = TrainRecipe(data=data(part, val=()))

    def judgements() -> object:
        job = TrainingJob(recipe, tmp_path, scan_training(recipe.data), None)
        return _identity(job)["data"]["judgements"]

    write_answers(tmp_path / "run", (key(0), RIGHT))
    first = judgements()
    assert judgements() == first
    write_answers(tmp_path / "run", (key(0), RIGHT), by="bob")  # who says the same
    assert judgements() == first
    write_answers(tmp_path / "run", (key(1), {"judgement": "wrong"}), by="carol")
    assert judgements() != first
