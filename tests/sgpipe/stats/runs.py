"""Runs whose labels say what a test needs, people who judge them, and commands."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from typer.testing import CliRunner, Result

from sgpipe.cli.main import app
from sgpipe.records import Box, Caption, Pair, Record, Relation, Triplet
from sgpipe.stats.plans import draw
from sgpipe.storage.index import open_run
from sgpipe.storage.judgement_lines import Judgement, Kind, PlannedQuestion, SamplingPlan
from sgpipe.storage.judgements import JUDGEMENTS
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import write_shard
from sgpipe.view.search import Filters, select_relations
from tests.sgpipe.training.data.runs import cut_shards, make_records

PERSON = Box("person", 1, (10, 10, 40, 80))
DOG = Box("dog", 2, (60, 40, 50, 40))
CUP = Box("cup", 3, (30, 30, 10, 10))


def scene(
    image_id: str = "0",
    relations: Sequence[tuple[int, str, int] | tuple[int, str, int, float | None]] = (),
    objects: Sequence[Box] = (PERSON, DOG, CUP),
    captions: Sequence[str] = (),
    dataset: str = "drawn",
) -> Record:
    """An image of 320 × 240 pixels; relations as subject, predicate, object, and perhaps the
    confidence.
    """
    stated = [Relation(r[0], r[2], r[1], r[3] if len(r) > 3 else None) for r in relations]
    texts = list(map(Caption, captions))
    return Record(
        image_id,
        dataset,
        "val",
        f"{image_id}.png",
        320,
        240,
        list(objects),
        texts,
        relations=stated,
    )


def make_shards(root: Path, records: Sequence[Record], rows: int = 200, **run: object) -> Path:
    """A run without images; `run`: of the header of its manifest."""
    root.mkdir(parents=True)
    manifest = Manifest.create(root, {"name": "drawn", "fingerprint": "drawn", **run})
    for shard in cut_shards(records, rows):
        manifest.commit(write_shard(root, *shard, {}))
    return root


def invoke(*arguments: object, code: int | None = 0) -> Result:
    """Run a command in a terminal that breaks no line of a table; `code`: of its end; None: any."""
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "400"})
    assert code in (None, result.exit_code), result.output
    return result


def labelled_records(count: int, seed: int = 0) -> list[Record]:
    """Random records with all that the stages fill."""
    rng = random.Random(seed)
    records = make_records(count, seed)
    for record in records:
        record.split = rng.choice(["train", "val"])
        record.captions = [
            Caption(f"a caption {rng.randrange(30)}") for _ in range(rng.randint(0, 3))
        ]
        for _ in record.captions:
            names = ("person", rng.choice([None, "dog"]))
            record.triplets.append(Triplet("a man", "on", "a dog", "man", "dog", "on", 0, *names))
        for _ in range(rng.randint(0, 2) if record.objects else 0):
            record.pairs.append(
                Pair(0, len(record.objects) - 1, ["on", "near"][: rng.randint(1, 2)])
            )
    return records


def judgement_of(
    question: PlannedQuestion, judgement: str | None = None, **values: object
) -> Judgement:
    """Return an answer to a question of the plan "p", if nothing else is said."""
    line = {
        "id": uuid.uuid4().hex,
        "at": "",
        "by": "anna",
        "run": "drawn",
        "judgement": judgement,
        "plan": "p",
    }
    return Judgement.model_validate({**question.key._asdict(), **line, **values})


def judge(
    root: Path, number: int, decide: Callable[[PlannedQuestion], str | None], kind: Kind = "bands"
) -> Path:
    """Plan this number of questions about a run and judge them; `decide`: right, wrong, unsure,
    None: it stays open.
    """
    with open_run(root) as database:
        run = str(database.run["fingerprint"])
        index = database
        strata, questions = draw(index.rows, *select_relations(index, Filters()), kind, number)
    values = {"kind": kind, "seed": 0, "strata": strata, "questions": questions}
    lines = [SamplingPlan(plan="p", at="", by="anna", run=run, **values)]
    lines += [
        judgement_of(question, judgement, run=run)
        for question in questions
        if (judgement := decide(question))
    ]
    file = root / JUDGEMENTS
    file.write_text("".join(f"{line.model_dump_json()}\n" for line in lines), encoding="utf-8")
    return file
