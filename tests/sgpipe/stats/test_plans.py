"""Sampling plans: which relations are asked about, and the precision that the answers show."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sgpipe.stats.judged_precision import JudgementMeasures, measure_judgements
from sgpipe.stats.plans import MARGIN, PlanProgress, draw, next_question
from sgpipe.storage.index import open_run
from sgpipe.storage.judgement_lines import PlannedQuestion, PlanStratum, SamplingPlan
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog
from sgpipe.view.search import Filters, select_relations
from tests.sgpipe.stats.runs import invoke, judge, judgement_of, make_shards, scene
from tests.values import values_of

RUN = "drawn"  # the fingerprint of such a run

# 300 relations of confidence 0.6 (a third of them "near"), 40 of 0.15, 5 without; the last are all
# "on".
RELATIONS = [
    *((f"a{n}", ("near", "on", "at")[n % 3], 0.6) for n in range(300)),
    *((f"b{n}", "on", 0.15) for n in range(40)),
    *((f"c{n}", "on", None) for n in range(5)),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The relations as a run."""
    records = [
        scene(image, [(0, predicate, 1, confidence)]) for image, predicate, confidence in RELATIONS
    ]
    return make_shards(tmp_path_factory.mktemp("plans") / "run", records)


@pytest.fixture(scope="module")
def population(run):
    """What `draw` draws from: all of the run."""
    with open_run(run) as database:
        yield database.rows, *select_relations(database, Filters())


@pytest.fixture
def log(tmp_path: Path) -> JudgementLog:
    return JudgementLog(tmp_path / JUDGEMENTS, RUN)


def stored(log: JudgementLog, kind: str, strata, questions, plan: str = "p") -> SamplingPlan:
    values = {"plan": plan, "kind": kind, "strata": strata, "questions": questions}
    return log.append(SamplingPlan(at="", by="anna", run=RUN, seed=0, **values))


def say(log: JudgementLog, question: PlannedQuestion, judgement: str, **values: str | None) -> None:
    log.append(judgement_of(question, judgement, **values))


def test_bands_get_equal_shares_in_random_order(population):
    strata, questions = draw(*population, "bands", 65)
    assert values_of(strata, "name", "relations", "sampled") == [
        ("none", 5, 5), ("0.10 to 0.20", 40, 30), ("0.50 to 0.70", 300, 30)
    ]  # fmt: skip
    assert len(set(values_of(questions, "key"))) == 65
    assert len(set(values_of(questions[:15], "stratum"))) > 1
    one = questions[0]
    assert (one.subject_category, one.object_category) == ("person", "dog")
    assert draw(*population, "bands", 65) == (strata, questions)
    assert draw(*population, "bands", 65, 1)[1] != questions


def test_every_relation_of_a_stratum_is_drawn_equally_often(population):
    counts = Counter(
        q.key
        for seed in range(60)
        for q in draw(*population, "bands", 40, seed)[1]
        if q.stratum == 1
    )
    assert len(counts) == 40
    expected = 60 * 17 / 40  # the five without a confidence are all drawn
    chi_square = np.sum((np.array(list(counts.values())) - expected) ** 2 / expected)
    assert chi_square < 70  # 39 degrees: p < 0.002


def test_predicates_are_strata_and_the_rare_ones_are_one(population):
    strata, questions = draw(*population, "predicates", 30)
    assert values_of(strata, "name", "predicate", "relations", "sampled") == [
        ("on", "on", 145, 10), ("at", "at", 100, 10), ("other predicates", None, 100, 10)
    ]  # fmt: skip
    assert all(strata[q.stratum].predicate in (q.predicate, None) for q in questions)


def test_only_answers_that_the_plan_asked_for_count_until_later_ones_or_other_people_change_them(
    population, log
):
    plan = stored(log, "bands", *draw(*population, "bands", 60))
    for question in plan.questions[:20]:
        say(log, question, "right")
    say(log, plan.questions[20], "unsure")
    say(log, plan.questions[21], "skip")
    for question in plan.questions[22:]:  # found while browsing
        say(log, question, "wrong", plan=None)
    progress = PlanProgress(plan, log)
    assert (progress.precision.judged, progress.precision.correct) == (21, 20)
    assert (progress.unsure, progress.conflicts, progress.open) == (1, 0, len(plan.questions) - 21)
    first, second, third = plan.questions[:3]
    say(log, first, "wrong", plan=None)  # on the image page
    for question, by in ((second, "ben"), (third, "ben"), (third, "cleo")):
        say(log, question, "wrong", by=by)
    progress = PlanProgress(plan, log)
    assert (progress.precision.judged, progress.precision.correct) == (21, 17)
    assert (progress.unsure, progress.conflicts) == (2, 1)


def test_the_number_of_further_answers_narrows_the_interval_to_the_margin(log):
    """That many answers in the same proportions do, and nine tenths of them do not."""
    strata = [
        PlanStratum(name=str(n), relations=20_000, sampled=1500, start=n / 2, stop=(n + 1) / 2)
        for n in range(2)
    ]
    questions = [
        PlannedQuestion("val", str(n), 0, 1, "on", "a", "b", 0.2 + n % 2 / 2, n % 2)
        for n in range(3000)
    ]
    plan = stored(log, "bands", strata, questions)

    lines = [
        judgement_of(question, "right" if int(question.image_id) % 10 else "wrong")
        for question in questions
    ]

    def answered(number: int) -> tuple[float, int]:
        """Half of the width of the interval after so many answers, and how many more it takes."""
        log.file.write_text(
            "".join(f"{line.model_dump_json()}\n" for line in [plan, *lines[:number]])
        )
        now = JudgementLog(log.file, RUN)
        estimate = PlanProgress(plan, now).precision
        return (estimate.high - estimate.low) / 2, PlanProgress(plan, now).needed()

    width, more = answered(100)
    assert width > MARGIN
    assert 100 < more < 2000
    assert answered(100 + int(0.8 * more))[0] > MARGIN
    width, left = answered(100 + more)
    assert width <= MARGIN * 1.02
    assert left < more / 10
    assert answered(3000)[1] == 0


def test_people_get_questions_in_other_orders_and_what_was_skipped_last(population, log):
    plan = stored(log, "bands", *draw(*population, "bands", 10))
    firsts = {next_question(plan, log, by).key for by in ("anna", "ben", "cleo", "dan")}
    assert len(firsts) > 1
    skipped = next_question(plan, log, "anna")
    say(log, skipped, "skip")
    seen = []
    while (
        (question := next_question(plan, log, "anna"))
        and question.key not in seen
        and len(seen) < 20
    ):
        seen.append(question.key)
        say(log, question, "right")
    assert seen[-1] == skipped.key
    assert len(seen) == 10
    assert next_question(plan, log, "ben") is None


def test_the_audit_reads_the_plan_of_the_run_with_the_most_answers(run, population, log):
    rng = random.Random(0)
    few = stored(log, "bands", *draw(*population, "bands", 40), plan="few")
    many = stored(log, "predicates", *draw(*population, "predicates", 60), plan="many")
    largest = stored(log, "search", *draw(*population, "bands", 345), plan="most")
    for plan, number in ((few, 20), (many, 50), (largest, 80)):
        for question in plan.questions[:number]:
            say(log, question, rng.choice(["right", "right", "wrong"]), plan=plan.plan)
    audit = measured(run, log.file)
    assert (audit.plan, audit.precision.judged, audit.strata) == ("many", 50, "predicates")
    live = PlanProgress(many, log)
    assert (audit.precision.value, audit.precision.low) == (
        live.precision.value,
        live.precision.low,
    )
    assert audit.precision.high == live.precision.high
    assert audit.bands == live.strata
    assert audit.curve[1].relations == 305
    assert audit.relations == audit.relations_now == 345


def measured(run, file, target: float = 0.9) -> JudgementMeasures:
    with open_run(run) as database:
        return measure_judgements(database, file, target, (0.0, 0.5))


def report(run, *options: object) -> str:
    return invoke("stats", run, "--judgements", "own", *options).stdout


def test_judgements_become_precision_weighted_by_the_bands(run):
    """All right but one where sure, none where not, and the annotated ones open."""
    first = []

    def decide(question):
        if question.stratum == 2 and not first:
            first.append(question)
            return "unsure"
        return (None, "wrong", "right")[question.stratum]

    file = judge(run, 65, decide)
    audit = measured(run, file)
    assert (audit.precision.judged, audit.unsure, audit.open) == (60, 1, 5)
    assert audit.precision.value == pytest.approx(290 / 340)
    assert audit.precision.low < 290 / 340 < audit.precision.high
    assert audit.precision.high - audit.precision.low < 0.25
    assert audit.precision.covered == pytest.approx(340 / 345)
    assert audit.if_unsure_right == pytest.approx(300 / 340)
    assert [(row.precision.correct, row.precision.judged) for row in audit.bands] == [
        (0, 0),
        (0, 30),
        (29, 30),
    ]
    assert audit.suggested is None  # 29 of 30 show 85 %
    choice = measured(run, file, 0.7).suggested
    assert (choice.threshold, choice.kept, choice.relations) == (pytest.approx(0.15), 60, 345)
    assert audit.precision.low < choice.at_least < 290 / 340  # one side only
    assert [(choice.kept, choice.precision.value) for choice in audit.curve] == [
        (60, pytest.approx(290 / 340)), (30, pytest.approx(29 / 30))
    ]  # fmt: skip
    assert audit.predicates["on"].value == pytest.approx(100 / 140)
    assert (audit.predicates["near"].value, audit.predicates["near"].high) == (1, 1)
    assert "precision by predicate" in report(run)


def test_a_suggested_threshold_selects_the_relations_that_it_counts(tmp_path):
    rng = random.Random(4)
    confidences = [min(rng.random() ** 2 + 0.0004, 1.0) for _ in range(400)] + [0.7, 0.7, 0.3]
    root = make_shards(
        tmp_path / "run", [scene(str(n), [(0, "on", 1, c)]) for n, c in enumerate(confidences)]
    )
    file = judge(
        root, 150, lambda question: "right" if rng.random() < question.confidence + 0.2 else "wrong"
    )
    for target in (0.3, 0.8):
        text = " ".join(report(root, "--precision", target).split())
        pattern = (
            r"hreshold of ([\d.]+) keeps (\d+) of 403 relations; with 95% confidence, at least"
            r" (\d+)%"
        )
        sentence = re.search(pattern, text)
        threshold, selected, correct = sentence.groups()
        assert sum(np.float32(c) >= np.float32(float(threshold)) for c in confidences) == int(
            selected
        )
        assert int(correct) == 100 * target
        choice = measured(root, file, target).suggested
        assert (choice.text, choice.relations) == (threshold, int(selected))
        assert target <= choice.at_least <= choice.precision.value


def test_a_run_that_has_grown_keeps_the_weights_of_the_plan(tmp_path):
    records = [scene(f"a{n}", [(0, "on", 1, 0.05 if n < 90 else 0.9)]) for n in range(100)]
    before = make_shards(tmp_path / "before", records)
    after = make_shards(
        tmp_path / "after", [*records, *(scene(f"b{n}", [(0, "on", 1, 0.9)]) for n in range(50))]
    )
    file = judge(before, 20, lambda question: "right" if question.confidence > 0.5 else "wrong")
    shutil.copy(file, after / file.name)
    judgements = json.loads(report(after, "--json"))["judgements"]  # whose shape scripts rely on
    assert (judgements["precision"], judgements["judged"], judgements["covered"]) == (
        pytest.approx(0.1),
        20,
        1,
    )
    assert 0 < judgements["low"] < judgements["high"] < 1
    assert "The run had 100 relations when the plan was made and has 150 now" in report(after)
