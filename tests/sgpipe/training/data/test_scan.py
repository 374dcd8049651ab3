from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.records import Record, Relation
from sgpipe.storage.manifest import Manifest
from sgpipe.training.data.order import Epoch, iter_epoch
from sgpipe.training.data.scan import TrainingSet, scan, scan_training, scan_validation
from sgpipe.training.recipe import ShardsConfig
from tests.factories import make_calibration
from tests.sgpipe.training.data.runs import data, make_records, make_run, plain_record
from tests.values import values_of

LABELS = {"objects": ["person", "dog"], "relations": ["on", "left of"]}

HARMS: dict[str, Callable[[Path], object]] = {
    "is listed in the manifest but missing": lambda root: next((root / "data").iterdir()).unlink(),
    "has no shards of any split: there are no shards yet": lambda root: Manifest.create(root, {}),
    "if the images moved, pass --images": lambda root: (root / "images").rename(root / "moved"),
}


def usable_relations(record: Record, threshold: float) -> list[Relation]:
    """The usable relations of a record, computed in the simplest way."""
    return [
        relation
        for relation in record.relations
        if record.ok
        and not record.objects[relation.subject].iscrowd
        and not record.objects[relation.object].iscrowd
        and (
            relation.confidence is None or np.float32(relation.confidence) >= np.float32(threshold)
        )
    ]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0]),
)
def test_counts_equal_those_of_a_loop_over_the_records(
    seed: int, count: int, rows: int, threshold: float
) -> None:
    records = [*make_records(count, seed), plain_record("last")]
    with TemporaryDirectory() as folder:
        training_set = scan([make_run(Path(folder), records, rows=rows)], threshold)
    relations = [relation for record in records for relation in usable_relations(record, threshold)]
    objects = [box for record in records if record.ok for box in record.objects if not box.iscrowd]
    for names, vocabulary in (
        (Counter(values_of(objects, "category")), training_set.objects),
        (Counter(values_of(relations, "predicate")), training_set.relations),
    ):
        assert list(zip(vocabulary.names, vocabulary.counts, strict=True)) == names.most_common()
    usable = [bool(usable_relations(record, threshold)) for record in records]
    assert training_set.rows == sum(usable)
    assert [note.split()[2] for note in training_set.notes] == [
        str(n) for n in (len(records) - training_set.rows,) if n
    ]
    assert values_of(training_set.row_groups, "rows") == [
        total
        for start in range(0, len(records), rows)
        if (total := sum(usable[start : start + rows]))
    ]


def test_names_count_as_often_as_an_epoch_visits_their_folder(tmp_path):
    often = make_run(tmp_path / "a", [plain_record(f"a{n}", "on") for n in range(4)])
    seldom = make_run(
        tmp_path / "b", [plain_record(f"b{n}", ("under", "on")[n > 4]) for n in range(6)]
    )
    weighted = [
        config.model_copy(update={"weight": weight})
        for config, weight in ((often, 2.5), (seldom, 0.5))
    ]
    training_set = scan(weighted, 0.2)
    assert dict(zip(training_set.relations.names, training_set.relations.counts, strict=True)) == {
        "on": 10.5,
        "under": 2.5,
    }
    assert dict(zip(training_set.objects.names, training_set.objects.counts, strict=True)) == {
        "person": 13,
        "dog": 13,
    }


@pytest.mark.parametrize("limit", [1, 4, 9, 10_000])
def test_a_limit_ends_the_scan(tmp_path, limit):
    records = make_records(60)
    config = make_run(tmp_path / "all", records)
    usable = [number for number, record in enumerate(records) if usable_relations(record, 0.2)]
    shorter = records[: usable[limit - 1] + 1] if limit <= len(usable) else records
    expected = scan([make_run(tmp_path / "short", shorter)], 0.2)
    training_set = scan([config], 0.2, limit=limit)
    for name in ("objects", "relations", "notes", "rows"):
        assert getattr(training_set, name) == getattr(expected, name)


def images(training_set: TrainingSet) -> list[str]:
    return [
        row.values()["image_id"] for row in iter_epoch(training_set, Epoch(training_set.row_groups))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 60])
def test_random_limits_are_nested_and_do_not_depend_on_row_groups(tmp_path, rows):
    records = make_records(60)
    other = make_run(tmp_path / "other", records, rows=7)
    config = make_run(tmp_path / "run", records, rows=rows)
    usable = [record.image_id for record in records if usable_relations(record, 0.2)]
    chosen = {
        limit: images(scan([config], 0.2, limit=limit, limit_seed=3))
        for limit in (1, 5, 12, len(usable), 999)
    }
    assert chosen[5] == images(scan([other], 0.2, limit=5, limit_seed=3))
    for limit, names in chosen.items():
        assert len(names) == min(limit, len(usable))
        assert names == [name for name in usable if name in names]  # in the order of the shards
    assert set(chosen[1]) < set(chosen[5]) < set(chosen[12]) < set(chosen[999])
    assert chosen[12] != images(scan([config], 0.2, limit=12))
    assert chosen[12] != images(scan([config], 0.2, limit=12, limit_seed=4))


def test_folders_may_have_limits_of_their_own(tmp_path):
    few = make_run(tmp_path / "few", [plain_record(f"a{number}") for number in range(20)])
    many = make_run(tmp_path / "many", [plain_record(f"b{number}") for number in range(20)])
    first, drawn = (few.model_copy(update={"limit": 4, "limit_seed": seed}) for seed in (None, 5))
    assert images(scan([first, many], 0.2))[:5] == ["a0", "a1", "a2", "a3", "b0"]
    alone = images(scan([few], 0.2, limit=4, limit_seed=5))
    assert images(scan([drawn, many], 0.2))[:4] == alone  # whatever else is trained on
    both = images(scan([many, drawn], 0.2))
    assert (both[:20], both[20:]) == ([f"b{number}" for number in range(20)], alone)
    assert images(scan([drawn, many], 0.2, limit=6)) == [*alone, "b0", "b1"]
    limited = images(scan([drawn, many], 0.2, limit=6, limit_seed=0))
    assert len(limited) == 6
    assert {name for name in limited if name[0] == "a"} <= set(alone)
    # the same folder, twice
    assert images(scan([drawn, first], 0.2)) == [
        *alone,
        "a0",
        "a1",
        "a2",
        "a3",
    ]


def test_a_confidence_equal_to_the_threshold_is_usable_although_stored_as_float32(tmp_path):
    config = make_run(
        tmp_path, [plain_record("a", confidence=0.7), plain_record("b", confidence=0.69)]
    )
    assert scan([config], 0.7).rows == 1  # the float32 nearest to 0.7 is less than 0.7


def test_different_closed_labels_are_refused(tmp_path):
    plain = make_run(tmp_path / "plain", [plain_record("a")])
    closed = make_run(tmp_path / "closed", [plain_record("a")], run={"labels": LABELS})
    other = make_run(
        tmp_path / "other", [plain_record("a")], run={"labels": {**LABELS, "relations": ["on"]}}
    )
    strange = make_run(tmp_path / "strange", [plain_record("a", "riding")], run={"labels": LABELS})
    for configs, message in (
        ([plain], f"{plain.shards} has no closed class lists"),
        ([closed, other], f"{other.shards} has other classes than {closed.shards}"),
        ([closed, strange], f"{strange.shards}: relation 'riding' is not one of the 2 classes"),
    ):
        with pytest.raises(UserError, match=message):
            scan(configs, 0.2, closed=True)
    with pytest.raises(UserError, match=f"{other.shards} has other classes than {closed.shards}"):
        scan_validation(data(closed, val=(other,), labels="full"), scan([closed], 0.2, closed=True))


@pytest.mark.parametrize("message", HARMS)
def test_an_unusable_folder_is_named(tmp_path, message):
    config = make_run(tmp_path, [plain_record("a")])
    HARMS[message](tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        scan([config], 0.2)
    assert str(tmp_path) in str(caught.value)


def failed(image_id: str) -> Record:
    record = plain_record(image_id)
    record.fail("load", "broken")
    return record


def test_a_split_without_usable_rows_is_named(tmp_path):
    unsure = plain_record("b", confidence=0.1, split="val")
    for name, records, message in (
        (
            "unsure",
            [unsure],
            "no image of split val of .* with confidence >= 0.2; .* lower data.threshold",
        ),
        ("failed", [failed("a")], "no image of split train of .* is without an error"),
        ("one", [plain_record("a"), unsure], "no image of split val"),
    ):
        with pytest.raises(UserError, match=message):
            scan([make_run(tmp_path / name, records)], 0.2)
    with pytest.raises(UserError, match="has no shards of other: there are train"):
        scan([ShardsConfig(shards=tmp_path / "one", splits=("other",))], 0.2)


@pytest.mark.parametrize("end", [2, -1])
def test_a_relation_with_a_missing_object_is_an_error(tmp_path, end):
    record = plain_record("a")
    record.relations.append(Relation(0, end, "on"))
    with pytest.raises(
        UserError, match=f"image a has a relation with object {end}, which does not exist"
    ):
        scan([make_run(tmp_path, [record])], 0.2)


def test_notes_name_left_out_rows(tmp_path):
    records = [plain_record("a"), plain_record("b", confidence=0.1), failed("c"), failed("d")]
    [note] = scan_training(data(make_run(tmp_path, records))).notes
    assert note == "left out 3 of 4 rows: error rows, or no relation with confidence >= 0.2"
    assert not scan_training(data(make_run(tmp_path / "whole", [plain_record("a")]))).notes


def test_with_a_calibration_the_threshold_is_a_probability(tmp_path):
    records = [
        plain_record(f"{word}{n}", word, n / 10) for word in ("on", "under") for n in range(1, 10)
    ]
    records += [plain_record("people")]
    shards = make_run(tmp_path / "run", records)
    human = make_run(tmp_path / "human", [plain_record("a")], run={"fingerprint": "human"})
    file = make_calibration(tmp_path / "c.json", {"run": "drawn"}, offset=2.0)
    training_set = scan_training(data(shards, human, calibration=file, threshold=0.5))
    # from a confidence of 0.12 on
    probable = {f"{word}{n}" for word in ("on", "under") for n in range(2, 10)}
    assert set(images(training_set)) == {*probable, "people", "a"}
    assert scan_training(data(shards, calibration=file, precision=0.8)).rows == len(probable) + 1
    with pytest.raises(UserError):
        scan_training(
            data(make_run(tmp_path / "unsure", records[:1]), calibration=file, threshold=0.5)
        )
    other = make_run(tmp_path / "other", records[:2], run={"fingerprint": "other"})
    settings = data(shards, calibration=file, val=(other,))
    with pytest.raises(
        UserError, match=r"does not fit .*other, whose confidences are of another tagger"
    ):
        scan_validation(settings, scan_training(settings))
    with pytest.raises(
        UserError, match=r"does not fit .*other, whose confidences are of another tagger"
    ):
        scan_training(data(other, calibration=file))
    with pytest.raises(UserError, match="precision needs a calibration"):
        scan_training(data(shards, precision=0.9))
