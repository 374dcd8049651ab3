import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.export.hugging_face import describe_origin
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.corrected import CorrectedRun, correct_relations, correct_run
from sgpipe.storage.judgement_lines import Judgement
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import CLIP_SCORE, embedded_images, read_file, write_copy
from sgpipe.storage.verify import verify
from sgpipe.training.recipe import ShardsConfig
from tests.sgpipe.sources.test_import_run import QUIET
from tests.sgpipe.training.data.runs import make_run
from tests.sgpipe.training.data.test_feed import feed, training
from tests.values import values_of

RUN = "drawn"
PLACES = [(s, o, p) for s in range(2) for o in range(2) for p in ("on", "near")]
OUTCOMES = st.dictionaries(
    st.sampled_from(PLACES), st.frozensets(st.sampled_from(PLACES), max_size=1), max_size=6
)


def judge(
    root: Path, image_id: str, place: tuple[int, int, str], by: str = "anna", **answer: object
) -> Judgement:
    log = JudgementLog(root / JUDGEMENTS, RUN)
    values = {
        "id": uuid.uuid4().hex,
        "at": "",
        "by": by,
        "run": RUN,
        "split": "train",
        "image_id": image_id,
    }
    key = dict(zip(("subject", "object", "predicate"), place, strict=True))
    return log.append(Judgement.model_validate({**values, **key, **answer}))


def change(action: str, **values: str) -> dict[str, Any]:
    return {"change": {"action": action, **values}}


def scene(image_id: str, *relations: tuple[int, int, str, float | None]) -> Record:
    boxes = [
        Box("person", 1, (2, 2, 8, 8)),
        Box("dog", 2, (12, 4, 8, 10)),
        Box("cup", 3, (1, 1, 4, 4)),
    ]
    stated = [Relation(*relation) for relation in relations]
    return Record(image_id, "drawn", "train", f"{image_id}.png", 24, 16, boxes, relations=stated)


def correct(root: Path, out: Path, conflicts: str = "majority", **options: object) -> CorrectedRun:
    log = JudgementLog(root / JUDGEMENTS, RUN)
    return correct_run(Manifest.load(root), root, log, out, QUIET, conflicts, **options)


def relations(root: Path) -> dict[str, list[tuple[int, int, str, float | None]]]:
    def shown(r: Relation) -> tuple[int, int, str, float | None]:
        return r.subject, r.object, r.predicate, r.confidence and round(r.confidence, 2)

    return {record.image_id: [*map(shown, record.relations)] for record in iter_records(root)}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Seven images of two relations in two shards, of which one is judged in each but the last."""
    names = ("right", "wrong", "unsure", "predicate", "swap", "delete", "untouched")
    records = [scene(name, (0, 1, "on", 0.8), (0, 2, "holding", 0.3)) for name in names]
    labels = {"objects": ["person", "dog", "cup"], "relations": ["on", "holding"]}
    run = make_run(tmp_path / "run", records, rows=4, run={"labels": labels}).shards
    on = (0, 1, "on")
    for judgement in ("right", "wrong", "unsure"):
        judge(run, judgement, on, judgement=judgement)
    judge(run, "predicate", on, **change("predicate", predicate="near"))
    judge(run, "swap", on, **change("swap"))
    judge(run, "delete", on, **change("delete"))
    judge(run, "delete", (1, 2, "under"), **change("add"))
    return run


def test_relations_become_what_people_say_and_all_else_stays(run, tmp_path):
    correction = correct(run, tmp_path / "out")
    held = (0, 2, "holding", 0.3)
    assert relations(tmp_path / "out") == {
        "right": [(0, 1, "on", None), held], "wrong": [held], "unsure": [(0, 1, "on", 0.8), held],
        "predicate": [(0, 1, "near", None), held], "swap": [(1, 0, "on", None), held],
        "delete": [held, (1, 2, "under", None)], "untouched": [(0, 1, "on", 0.8), held],
    }  # fmt: skip
    counts = {"confirmed": 1, "removed": 2, "changed": 2, "added": 1, "unsure": 1, "undecided": 0}
    assert (
        correction.counts,
        correction.conflicts,
        correction.missing,
        correction.images,
        correction.shards,
    ) == (
        counts,
        0,
        0,
        7,
        2,
    )
    assert verify(tmp_path / "out").ok
    plain = [replace(record, relations=[]) for record in iter_records(run)]
    assert [replace(record, relations=[]) for record in iter_records(tmp_path / "out")] == plain
    header = Manifest.load(tmp_path / "out").run
    assert correction.new_predicates == ["near", "under"]  # which the closed list lacked
    assert header["labels"]["relations"] == ["on", "holding", "near", "under"]
    assert header["identity"]["corrected"] == RUN
    assert header["fingerprint"] != RUN
    assert "Corrected by people in `sgpipe view`" in describe_origin(header, False)[1][-1]


@pytest.mark.parametrize(
    ("conflicts", "left"),
    [("majority", {"tie": [("on", 0.8)], "two": []}), ("latest", {"tie": [], "two": [("on", None)]}),
     ("drop", {"tie": [], "two": []})],
)  # fmt: skip
def test_people_who_differ(tmp_path, conflicts, left):
    run = make_run(
        tmp_path / "run", [scene("tie", (0, 1, "on", 0.8)), scene("two", (0, 1, "on", 0.8))]
    ).shards
    on = (0, 1, "on")
    for image, judged in (("tie", ("right", "wrong")), ("two", ("wrong", "wrong", "right"))):
        for by, judgement in zip(("anna", "ben", "cleo"), judged, strict=False):
            judge(run, image, on, by, judgement=judgement)
    correction = correct(run, tmp_path / "out", conflicts)
    undecided = {
        name: [(r[2], r[3]) for r in relation]
        for name, relation in relations(tmp_path / "out").items()
    }
    assert undecided == left
    assert correction.conflicts == 2
    assert correction.counts["undecided"] == (1 if conflicts == "majority" else 0)


@settings(max_examples=100, deadline=None)
@given(places=st.lists(st.sampled_from(PLACES), max_size=8), outcomes=OUTCOMES)
def test_what_is_certain_is_there_once_and_what_nobody_judged_stays(places, outcomes):
    names = ("subject", "object", "predicate", "confidence")
    rows = [
        dict(zip(names, (*place, number / 10), strict=True)) for number, place in enumerate(places)
    ]
    corrected, before = correct_relations(rows, outcomes)
    certain = {place for left in outcomes.values() for place in left}
    placed = [(tuple(row[name] for name in names[:3]), row["confidence"]) for row in corrected]
    assert sorted(place for place, confidence in placed if confidence is None) == sorted(certain)
    judged = certain | outcomes.keys()
    assert [row for row in placed if row[1] is not None] == [
        (place, number / 10) for number, place in enumerate(places) if place not in judged
    ]
    for (place, _), index in zip(placed, before, strict=True):
        assert index is None or places[index] == place
        assert (index is None) == (place not in places)


def test_a_corrected_run_is_resumed_and_other_judgements_make_another(run, tmp_path, monkeypatch):
    expected = correct(run, tmp_path / "whole")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    calls = iter([write_copy, stop])
    with monkeypatch.context() as patch:
        patch.setattr("sgpipe.storage.run_folder.write_copy", lambda *values: next(calls)(*values))
        with pytest.raises(KeyboardInterrupt):
            correct(run, tmp_path / "out")
    assert len(Manifest.load(tmp_path / "out").shards) == 1
    assert replace(correct(run, tmp_path / "out"), root=expected.root) == expected
    assert relations(tmp_path / "out") == relations(tmp_path / "whole")
    # changes no relation, but what is known of one
    judge(run, "untouched", (0, 1, "on"), judgement="unsure")
    judge(run, "untouched", (0, 2, "holding"), judgement="wrong")
    with pytest.raises(UserError, match="made with other settings"):
        correct(run, tmp_path / "out")


def test_scores_stay_with_their_relations(run, tmp_path):
    manifest = Manifest.load(run)
    score = pa.list_(pa.struct({"score": pa.float32()}))
    for shard in manifest.shards:
        table = read_file(run / shard.file)
        column = pa.array([[{"score": 0.5}, {"score": 0.25}]] * table.num_rows, score)
        manifest.commit(write_copy(run, shard, table.append_column(CLIP_SCORE, column)))
    correct(run, tmp_path / "out")
    tables = [
        read_file(tmp_path / "out" / shard.file) for shard in Manifest.load(tmp_path / "out").shards
    ]
    rows = [row for table in tables for row in table.to_pylist()]
    scores = {row["image_id"]: [item and item["score"] for item in row[CLIP_SCORE]] for row in rows}
    assert scores["right"] == scores["untouched"] == [0.5, 0.25]
    assert (scores["wrong"], scores["predicate"], scores["delete"]) == (
        [0.25],
        [None, 0.25],
        [0.25, None],
    )
    assert tables[0].schema.metadata[b"sgpipe.schema_version"]


@pytest.mark.parametrize("place", ["embedded", "moved"])
def test_training_reads_a_corrected_run_wherever_the_images_are(tmp_path, place):
    records = [scene(str(n), (0, 1, "on", 0.1)) for n in range(8)]
    images = tmp_path / "images" if place == "moved" else None
    run = make_run(tmp_path / "run", records, embedded=place == "embedded", images=images).shards
    for number in range(8):
        judge(run, str(number), (0, 1, "on"), **change("predicate", predicate="chasing"))
    if place == "moved":
        (tmp_path / "images").rename(tmp_path / "elsewhere")
    correct(run, tmp_path / "out", images=tmp_path / "elsewhere" if place == "moved" else None)
    batches = [
        example
        for step in training(feed(ShardsConfig(shards=tmp_path / "out")), 2)
        for example in step
    ]
    assert sorted(image for batch in batches for image in batch.image_ids) == list(
        map(str, range(8))
    )
    assert not any(values_of(batches, "skipped"))
    assert all("chasing" in batch.texts.relations for batch in batches)
    [shard, *_] = Manifest.load(tmp_path / "out").shards
    assert all(embedded_images(read_file(tmp_path / "out" / shard.file))) == (place == "embedded")


def test_the_command(run, tmp_path):
    judge(run, "right", (0, 1, "on"), "ben", judgement="wrong")
    judge(run, "nowhere", (0, 1, "on"), judgement="right")
    with (run / JUDGEMENTS).open("a") as file:
        file.write("torn")
    result = CliRunner().invoke(app, ["correct", str(run), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    for part in (
        "1 undecided",
        "people differ on 1 relation",
        "1 judged relation left out",
        "cut short",
    ):
        assert part in text
    second = CliRunner().invoke(
        app, ["-q", "correct", str(run), "--out", str(tmp_path / "out"), "--json"]
    )
    assert json.loads(second.output)["counts"]["changed"] == 2
    other = tmp_path / "other.jsonl"
    out = tmp_path / "no"
    other.write_text((run / JUDGEMENTS).read_text().replace('"run":"drawn"', '"run":"other"'))
    refused = CliRunner().invoke(
        app, ["correct", str(run), "--judgements", str(other), "--out", str(out)]
    )
    assert (refused.exit_code, out.exists()) == (2, False)
    assert "of another run" in refused.output
