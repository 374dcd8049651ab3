"""People who judge a sample of a run."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

from sgpipe.stats.plans import draw
from sgpipe.storage.index import open_run
from sgpipe.storage.judgements import JUDGEMENTS, Judgement, PlannedQuestion, SamplingPlan

RELATIONS = """
    select split::varchar as split, image_id, subject, object, predicate::varchar as predicate,
        subject_category::varchar as subject_category, object_category::varchar as object_category, confidence
    from relations join images using (image)
"""
Decide = Callable[[PlannedQuestion], str | None]  # right, wrong, unsure; None: it stays open


def judge(root: Path, number: int, decide: Decide, kind: str = "bands", seed: int = 0) -> Path:
    """Make a plan of a run with this number of questions, and judge them; returns the file of judgements."""
    with open_run(root) as database:
        run = str(database.run["fingerprint"])
        strata, questions = draw(database.index.rows, RELATIONS, (), kind, number, seed)
    values = {"kind": kind, "seed": seed, "strata": strata, "questions": questions}
    lines = [SamplingPlan(plan="p", at="", by="anna", run=run, **values).model_dump_json()]
    for question in questions:
        if judgement := decide(question):
            said = {"id": uuid.uuid4().hex, "at": "", "by": "anna", "run": run, "judgement": judgement, "plan": "p"}
            lines.append(Judgement.model_validate({**question.key._asdict(), **said}).model_dump_json())
    file = root / JUDGEMENTS
    file.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file
