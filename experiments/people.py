"""Simulated people, who judge the relations of a run by its ground truth, with slips."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from sgpipe.records import Box, Record, Relation
from sgpipe.stats.certify import continue_plan
from sgpipe.stats.plans import draw
from sgpipe.storage.index import Index
from sgpipe.storage.judgement_lines import Judgement, RelationKey, SamplingPlan, utc_now
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import ground_truth_of
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.hashing import fingerprint
from sgpipe.utils.lemmas import predicate_lemma
from sgpipe.view.filters import Filters
from sgpipe.view.search import select_relations

Ask = Literal["random", "uncertain", "certificate"]
CERTIFIED = 0.9  # the precision for whose certificate people are asked
Statement = tuple[str, tuple[int, ...], str, str, tuple[int, ...]]


def statements_of(record: Record) -> frozenset[Statement]:
    return frozenset(statement_of(record, relation) for relation in record.relations)


def statement_of(record: Record, relation: Relation) -> Statement:
    """A relation by the classes and the rounded boxes of its objects, whose order may differ
    between shards.
    """
    subject = record.objects[relation.subject]
    object_ = record.objects[relation.object]
    return (*_named(subject), predicate_lemma(relation.predicate), *_named(object_))


def _named(box: Box) -> tuple[str, tuple[int, ...]]:
    return box.category, tuple(round(side) for side in box.bbox)


def truth_of(run: Path) -> tuple[dict[RelationKey, bool], dict[RelationKey, float]]:
    """Return which relations of a run hold, and their confidences."""
    truth = ground_truth_of(run)
    assert truth is not None
    stated = {record.image_id: statements_of(record) for record in iter_records(truth.relations)}
    right = dict[RelationKey, bool]()
    confidence = dict[RelationKey, float]()
    for record in iter_records(run):
        for relation in record.relations:
            key = RelationKey(
                record.split, record.image_id, relation.subject, relation.object, relation.predicate
            )
            right[key] = statement_of(record, relation) in stated.get(record.image_id, frozenset())
            confidence[key] = max(relation.confidence or 0.0, confidence.get(key, 0.0))
    return right, confidence


def open_log(run: Path) -> JudgementLog:
    return JudgementLog(run / JUDGEMENTS, str(Manifest.load(run).run["fingerprint"]))


def answer_plans(run: Path, right: Mapping[RelationKey, bool], slips: float, limit: int) -> int:
    """Answer open questions of the plans of a run, until there are `most` answers; return how many
    there are.
    """
    log = open_log(run)
    questions = [
        (question.key, plan.plan) for plan in log.plans.values() for question in plan.questions
    ]
    done = sum(len(log.judged(plan)) for plan in log.plans)
    for key, plan in questions[done:limit]:
        _answer(log, key, right[key], slips, plan)
    return max(done, min(limit, len(questions)))


def _answer(
    log: JudgementLog, key: RelationKey, right: bool, slips: float, plan: str | None
) -> None:
    slip = random.Random(f"{slips} {key}").random() < slips
    values = {"id": fingerprint({"plan": plan, "key": key}), "at": "", "by": "simulated"}
    answer = {
        "run": log.fingerprint,
        "plan": plan,
        **key._asdict(),
        "judgement": "right" if right != slip else "wrong",
    }
    log.append(Judgement.model_validate({**values, **answer}))


def judge(run: Path, ask: Ask, answers: int, slips: float, seed: int) -> None:
    """Let people give this number of answers about a run.

    Args:
        ask: random: a plan by bands of confidence; uncertain: about confidences nearest to 0.5;
            certificate: by the rounds of one for `CERTIFIED`, as far as there are any.
        slips: share of the answers that are turned round.
    """
    right, confidence = truth_of(run)
    log = open_log(run)
    if ask == "uncertain":
        for key in sorted(right, key=lambda key: (abs(confidence[key] - 0.5), key))[:answers]:
            _answer(log, key, right[key], slips, None)
        return
    if ask == "random":
        index = Index(run)
        strata, questions = draw(
            index.rows, *select_relations(index, Filters()), "bands", answers, seed
        )
        index.close()
        plan = {
            "plan": "random",
            "at": utc_now(),
            "by": "simulated",
            "run": log.fingerprint,
            "kind": "bands",
            "seed": seed,
        }
        log.append(SamplingPlan.model_validate({**plan, "strata": strata, "questions": questions}))
        answer_plans(run, right, slips, answers)
        return
    while answer_plans(run, right, slips, answers) < answers:
        state = continue_plan(run, run / JUDGEMENTS, precision=CERTIFIED)
        if not state.open_questions:
            return
