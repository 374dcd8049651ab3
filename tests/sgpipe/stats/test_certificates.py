import dataclasses
import json
import random
import re
import shutil
import uuid
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.stats.certificate_rounds import extend
from sgpipe.stats.certificates import Round, evaluate, family_confidence, gains, most_errors
from sgpipe.storage.index import open_run
from sgpipe.storage.judgements import CERTIFICATE, JUDGEMENTS, JudgementLog
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import read_file, shard_name, write_shard
from tests.sgpipe.stats.runs import invoke, judgement_of, make_shards, scene
from tests.values import values_of

RUN = "drawn"  # the fingerprint of such a run
RIGHT = {"judgement": "right"}
WRONG = {"judgement": "wrong"}
UNSURE = {"judgement": "unsure"}

EDITS = {
    "capital": 1.0,
    "start": 7,
    "odds": [],
    "scores": [9.0, 9.0],
    "level": 99,
    "questions": "reversed",
}

CHANGES = ({"action": "swap"}, {"action": "predicate", "predicate": "under"})
DISPUTES = {
    "two of four change it, each otherwise": [
        RIGHT,
        RIGHT,
        *({"change": change} for change in CHANGES),
    ],
    "two of five call it right, three change or deny it": [
        RIGHT,
        RIGHT,
        *({"change": c} for c in CHANGES),
        WRONG,
    ],
    "three of four are unsure": [RIGHT, UNSURE, UNSURE, UNSURE],
    "one of two is unsure": [RIGHT, UNSURE],
}


def round_of(weight, left, slopes, asked, wrong, **changes) -> Round:
    cells = len(weight)
    numbers = [np.array(values, float) for values in (left, weight, slopes)]
    cell_values = (
        np.zeros(cells, np.int64),
        np.linspace(-1, 1, cells)[:, None] * np.ones((1, 2)),
        *numbers,
    )
    answers = (np.array(asked, np.int64), np.array(wrong, bool), np.zeros(len(asked), bool))
    return dataclasses.replace(Round(*cell_values, 0, 1.0, *answers), **changes)


@settings(max_examples=40, deadline=None)
@given(
    weight=st.lists(st.floats(0.2, 1), min_size=2, max_size=3),
    left=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    slopes=st.lists(st.floats(-3, 3), min_size=2, max_size=2),
    precision=st.sampled_from([0.4, 0.5, 0.7, 0.9]),
)
@pytest.mark.slow
def test_capital_does_not_grow_on_average_where_the_promise_is_broken(
    weight, left, slopes, precision
):
    """All orders in which relations of each cell can be drawn, with their exact chances."""
    left = left[: len(weight)]
    cells = np.repeat(np.arange(len(weight)), left)
    limit = most_errors(len(cells), precision) + 1
    wrong = np.zeros(len(cells), bool)
    for chosen in combinations(range(len(cells)), limit):
        wrong[:] = np.isin(np.arange(len(cells)), chosen)

        def mean(taken: tuple[int, ...]) -> float:
            """The expected capital after three draws, given the first ones."""
            rest = [number for number in range(len(cells)) if number not in taken]
            if len(taken) == 3 or not rest:
                sampled = list(taken)
                gain = gains(
                    round_of(weight, left, slopes, cells[sampled], wrong[sampled]),
                    0,
                    len(cells),
                    limit,
                    limit,
                )
                return float(np.exp(gain.sum(axis=0)).mean())
            chances = np.array([weight[cells[number]] for number in rest])
            return float(chances @ [mean((*taken, number)) for number in rest] / chances.sum())

        assert mean(()) <= 1 + 1e-6
        if limit > 2 and len(cells) > 6:
            break


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_answer_that_becomes_right_never_loses_capital(data):
    number = data.draw(st.integers(1, 12))
    asked = data.draw(st.lists(st.integers(0, 2), min_size=number, max_size=number))
    wrong = data.draw(st.lists(st.booleans(), min_size=number, max_size=number))
    changed = data.draw(st.integers(0, number - 1))
    weight = data.draw(st.lists(st.floats(0.1, 1), min_size=3, max_size=3))
    left = [40, 30, 20]
    precision = data.draw(st.sampled_from([0.6, 0.9]))
    better = [is_wrong and at != changed for at, is_wrong in enumerate(wrong)]
    before, after = (
        evaluate([round_of(weight, left, [1.0, 0.5], asked, is_wrong)], [90], precision, 0.95)
        for is_wrong in (wrong, better)
    )
    assert after.evidence >= before.evidence - 1e-9
    assert (after.reached is not None) >= (before.reached is not None)


def test_a_set_is_reached_only_after_the_stricter_ones():
    level = np.array([0, 1, 2])
    asked = np.tile([0, 1, 2], 120)
    wrong = np.isin(asked, [1]) & (np.arange(360) % 6 == 1)  # half of the second level
    round_ = round_of([1.0, 1.0, 1.0], [900, 900, 9000], [0.0, 0.0], asked, wrong, level=level)
    assert evaluate([round_], [900, 1800, 10800], 0.9, 0.95).reached == 0
    untested = dataclasses.replace(round_, start=None, capital=0.0)
    assert evaluate([untested], [900, 1800, 10800], 0.9, 0.95).tested is None


def test_a_later_chain_that_is_open_does_not_matter_once_all_is_reached():
    asked = np.tile([0, 1], 60)
    first = round_of(
        [1.0, 1.0], [900, 900], [0.0, 0.0], asked, asked < 0, level=np.array([0, 1]), capital=0.8
    )
    later = round_of(
        [1.0, 1.0], [840, 840], [0.0, 0.0], [0, 1], [True, False], level=first.level, capital=0.1
    )
    standing = evaluate([first, later], [900, 1800], 0.9, 0.95)
    assert (standing.reached, standing.tested, standing.evidence, standing.started) == (
        1,
        None,
        1.0,
        2,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run, and which of its relations are right: confident ones, but for all that are "near"."""
    rng = random.Random(0)
    records = []
    right = {}
    for number in range(900):
        relations = []
        for subject, object_ in ((0, 1), (1, 0), (0, 2)):
            predicate = rng.choice(["on", "on", "near"])
            confidence = round(rng.random(), 3)
            relations.append((subject, predicate, object_, confidence))
            is_right = predicate != "near" and rng.random() < min(0.99, 0.5 + confidence)
            right[str(number), subject, object_, predicate] = is_right
        records.append(scene(str(number), relations))
    for number in range(3):
        records.append(scene(f"rare{number}", [(0, "riding", 1, 0.5)]))
        right[f"rare{number}", 0, 1, "riding"] = True
    root = make_shards(tmp_path_factory.mktemp("certificates") / "run", records)
    with open_run(root):  # the index, which copies of the run have, too
        return root, right


@pytest.fixture
def copy(run, tmp_path: Path):
    return shutil.copytree(run[0], tmp_path / "run"), run[1]


def answer(
    root: Path, right, by: str = "anna", at: str = "2026-01-01T00:00:00Z", decide=None
) -> int:
    """Answer all open questions; returns how many."""
    log = JudgementLog(root / JUDGEMENTS, RUN)
    answered = 0
    known = set(values_of(log.current(), "key"))
    for plan in list(log.plans.values()):
        for question in plan.questions:
            if question.key in known:
                continue
            judgement = (
                decide(question) if decide else "right" if right[question.key[1:]] else "wrong"
            )
            log.append(judgement_of(question, judgement, at=at, by=by, plan=plan.plan))
            answered += 1
    return answered


def certify(root: Path, right, *options: object, decide=None, rounds: int = 60) -> bool:
    """Call and answer until the certificate is reached."""
    for number in range(rounds):
        result = invoke("certify", root, *options, code=None)
        if result.exit_code == 0:
            return True
        assert result.exit_code == 1, result.output
        assert answer(root, right, decide=decide, at=f"20{40 - number % 20}-01-01T00:00:00Z"), (
            "nothing is asked"
        )
    return False


def test_certify_verify_and_export(copy, tmp_path):
    root, right = copy
    out = tmp_path / "out"
    exported = ("export", root, "--to", "hf", "--certified", "--out", out)
    assert "has no certificate: `sgpipe certify" in invoke(*exported, code=2).output
    assert certify(root, right, "--precision", "0.9", "--by", "predicate")
    # no table of no other plans
    assert "sample of" not in invoke("stats", root, "--judgements", "own").output
    certificate = json.loads((root / CERTIFICATE).read_text())
    thresholds = dict(values_of(certificate["sets"], "predicate", "threshold"))
    assert thresholds
    assert "near" not in thresholds
    assert certificate["people"].keys() == {"anna"}
    assert certificate["dates"] == sorted(certificate["dates"])
    invoke("verify", root)
    invoke(*exported)
    rows = [
        row
        for file in sorted(out.glob("data/*.parquet"))
        for row in read_file(file)["relations"].to_pylist()
    ]
    kinds = [(certified["predicate"], certified["confidence"]) for row in rows for certified in row]
    assert {predicate for predicate, _ in kinds} == set(thresholds)
    assert all(confidence >= np.float32(thresholds[predicate]) for predicate, confidence in kinds)
    assert len(kinds) == sum(values_of(certificate["sets"], "relations"))
    assert "certify a precision of each predicate of at least 0.9" in " ".join(
        (out / "README.md").read_text().split()
    )
    training = invoke(
        "train", "tagger", "--data", root, "--certified", "--out", tmp_path / "model", code=2
    )
    assert "--certified needs one threshold" in training.output.replace("\n", " ")


def test_before_an_answer_is_wrong_the_fewest_answers_are_told(copy):
    root, right = copy
    options = ("--precision", "0.9", "--threshold", "0")
    first = invoke("certify", root, *options, code=1).output
    fewest = int(re.search(r"at least (\d+) more answers, if all are right", first)[1])
    assert "about" not in first
    assert certify(root, right, *options, decide=lambda _: "right")
    [certified] = json.loads((root / CERTIFICATE).read_text())["sets"]
    assert fewest <= certified["answers"]["right"] <= 2 * fewest
    (root / JUDGEMENTS).unlink()
    assert not certify(root, right, *options, decide=lambda _: "wrong", rounds=1)
    assert (
        "if as many are wrong as so far (25 of 25)"
        in invoke("certify", root, *options, code=1).output
    )


@given(
    st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 5000),
)
def test_groups_that_can_be_wrong_share_the_chance_to_be_wrong(groups, other_relations):
    """Whichever groups are complete: the chances of all others add up to that of the family."""
    sizes = np.array([size for size, _ in groups])
    is_complete = np.array([complete for _, complete in groups])
    chances = 1 - family_confidence(0.95, sizes, is_complete, int(sizes.sum()) + other_relations)
    shared = chances[~is_complete].sum()
    rest = sizes[~is_complete].sum() + other_relations
    assert shared == pytest.approx(0.05 * sizes[~is_complete].sum() / rest if rest else 0)
    assert (chances <= 0.05 + 1e-12).all()
    fewer = 1 - family_confidence(
        0.95, sizes, np.zeros(len(sizes), bool), int(sizes.sum()) + other_relations
    )
    assert (chances >= fewer - 1e-12).all()


def test_predicates_hold_together_unless_each_is_asked_for(copy):
    """A family takes more answers, says so, and is verified; smaller ones than the run has are
    refused.
    """
    root, right = copy
    answers = {}
    for options, says, family in (
        (("--each",), "each predicate by itself", None),
        ((), "all predicates together", 2703),
    ):
        command = ("--precision", "0.8", "--by", "predicate", "--threshold", "0.7", *options)
        assert certify(root, right, *command)
        certificate = json.loads((root / CERTIFICATE).read_text())
        [certified] = certificate["sets"]
        assert (certified["predicate"], certificate["by"]) == ("on", "predicate")
        assert (certificate["family"] is None) == (family is None)
        answers[says] = sum(certified["answers"].values())
        assert f"(0.95 confidence, {says})" in invoke("certify", root, *command).output
        invoke("verify", root)
        (root / JUDGEMENTS).rename(root / "before")
    assert answers["all predicates together"] > answers["each predicate by itself"]
    (root / "before").rename(root / JUDGEMENTS)
    family = certificate["family"]
    for file in (root / JUDGEMENTS, root / CERTIFICATE):
        text = file.read_text()
        file.write_text(
            text.replace(f'"family":{family}', '"family":1').replace(
                f'"family": {family}', '"family": 1'
            )
        )
    assert "has changed since" in " ".join(invoke("verify", root, code=1).output.split())
    assert (
        "--each is an option of --by"
        in invoke("certify", root, "--precision", "0.8", "--each", code=2).output
    )


@pytest.mark.slow
def test_a_predicate_of_three_relations(copy):
    root, right = copy
    for _ in range(13):
        invoke("certify", root, "--precision", "0.95", "--by", "predicate", code=None)
        answer(root, right)
    sets = json.loads((root / CERTIFICATE).read_text())["sets"]
    answers = {"right": 3, "wrong": 0, "unsure": 0}
    assert {
        "predicate": "riding",
        "threshold": 0.5,
        "relations": 3,
        "of": 3,
        "answers": answers,
    } in sets


@pytest.mark.slow
def test_an_edited_certificate_and_changed_answers_are_refused(copy):
    root, right = copy
    assert certify(
        root, right, "--precision", "0.9", "--threshold", "0.6", decide=lambda _: "right"
    )
    file = root / CERTIFICATE
    text = file.read_text()
    certificate = json.loads(file.read_text())

    def refused(says: str = "") -> None:
        output = invoke("verify", root, code=1).output.replace("\n", " ")
        assert f"{CERTIFICATE}: " in output
        assert says in output

    for change in (
        {"precision": 0.99},
        {"people": {"bob": 3}},
        {"sets": []},
        {"sets": "a"},
        {"prediction": "none"},
    ):
        file.write_text(json.dumps(certificate | change))
        refused()
    invoke("export", root, "--to", "hf", "--certified", "--out", root.parent / "out", code=2)
    file.write_text(re.sub(r'"bytes": \d+', '"bytes": 1e400', text))
    refused("is not a file of")
    for wrong in (None, [], 5, "a", certificate | {"judgements": []}):
        file.write_text(json.dumps(wrong))
        refused("is not a file of")
    file.write_text(
        json.dumps(
            certificate | {"not_covered": certificate["not_covered"] | {"recall": "in other words"}}
        )
    )
    invoke("verify", root)
    file.write_text(text)
    log = JudgementLog(root / JUDGEMENTS, RUN)
    for state in list(log.current()):
        log.append(
            state.judgements[0].model_copy(update={"id": uuid.uuid4().hex, "judgement": "wrong"})
        )
    refused("answers that were changed since")
    (root / JUDGEMENTS).write_bytes(b"")
    refused("is not what")
    refused("--repair drops what is damaged")
    repaired = invoke("verify", root, "--repair").output.replace("\n", " ")
    assert f"repaired: deleted {CERTIFICATE}; `sgpipe certify`" in repaired
    assert "--repair" not in repaired
    assert not file.exists()
    invoke("verify", root)


def test_an_edited_plan_is_one_line(copy):
    """The second of two rounds that start tests, as if the first had spent its capital twice, and
    so on.
    """
    root, right = copy
    assert not certify(root, right, "--precision", "0.9", rounds=2)
    file = root / JUDGEMENTS
    lines = file.read_text().splitlines()
    for field, value in EDITS.items():
        edited = list(map(json.loads, lines))
        [first, *_, plan] = [line for line in edited if "strata" in line]
        [group] = plan["certificate"]["groups"]
        assert group["start"] is not None
        part = next(part for part in (group, plan, plan["strata"][0]) if field in part)
        part[field] = part[field][::-1] if field == "questions" else value
        if field == "capital":
            first["certificate"]["groups"][0] |= {"start": 0, "capital": 0.8}
        file.write_text("".join(f"{json.dumps(line, separators=(',', ':'))}\n" for line in edited))
        result = invoke("certify", root, "--precision", "0.9", code=None)
        assert result.exception is None or isinstance(result.exception, SystemExit), (
            result.exception
        )
        assert JudgementLog(file, RUN).problems or result.exit_code == 2, (field, result.output)


def test_a_run_that_has_changed_since(copy):
    root, right = copy
    certify(root, right, "--precision", "0.9", rounds=1)
    manifest = Manifest.load(root)
    start = sum(values_of(manifest.shards, "rows"))
    more = [scene(f"new{number}", [(0, "on", 1, 0.7)]) for number in range(50)]
    manifest.commit(write_shard(root, shard_name("val", start, start + 50), "val", start, more, {}))
    [old] = JudgementLog(root / JUDGEMENTS, RUN).plans.values()
    output = invoke("certify", root, "--precision", "0.9", code=1).output
    assert "2 plans of certificates have begun" in " ".join(output.split())
    with open_run(root) as database, pytest.raises(UserError, match="has changed since"):
        extend(database, old.certificate.settings, JudgementLog(root / JUDGEMENTS, RUN), "anna")


def test_people_who_answer_at_random_certify_nothing(copy):
    root, right = copy
    rng = random.Random(0)
    anything = lambda _: rng.choice(["right", "wrong", "unsure"])  # noqa: E731
    assert not certify(root, right, "--precision", "0.9", rounds=5, decide=anything)
    assert not (root / CERTIFICATE).exists()


@pytest.mark.parametrize("wrong", DISPUTES.values(), ids=DISPUTES.keys())
def test_relations_that_no_majority_calls_right_certify_nothing(copy, wrong):
    """Everybody calls six of ten relations right; about the others they differ as the name says."""
    root, _ = copy
    options = ("--precision", "0.95", "--threshold", "0.4")
    answers = 0
    for _ in range(4):
        invoke("certify", root, *options, code=1)
        log = JudgementLog(root / JUDGEMENTS, RUN)
        plan = list(log.plans.values())[-1]
        for number, question in enumerate(plan.questions):
            of_people = [RIGHT] * len(wrong) if number % 10 < 6 else wrong
            for person, answer in enumerate(of_people):
                values = {"judgement": None, **answer}
                log.append(judgement_of(question, by=f"person {person}", plan=plan.plan, **values))
            answers += 1
    assert answers == 100
    report = json.loads(invoke("certify", root, *options, "--json", code=1).stdout)
    assert not report["certificate"]["sets"]
    [group] = report["groups"]
    assert group["share"] < 0.2
    assert not (root / CERTIFICATE).exists()


def test_bad_settings_are_one_line(copy):
    for options, message in (
        (("--precision", "0"), "precision"),
        (("--precision", "0.9", "--confidence", "1"), "confidence"),
        (("--precision", "0.9", "--prediction", "vlm_score"), "has no column vlm_score"),
        (("--precision", "0.9", "--threshold", "2"), "no relations to certify"),
        (("--precision", "0.9", "--judgements", __file__), "pass --out"),
    ):
        output = invoke("certify", copy[0], *options, code=2).output
        assert (message in output, "Traceback" in output) == (True, False)
        assert not (copy[0] / JUDGEMENTS).exists()


def test_another_process_makes_the_same_round(copy):
    """Rounds follow from the run and the answers alone; a round is appended once."""
    root, right = copy
    lines = []
    for name in ("one", "other"):
        shutil.copytree(root, root.parent / name)
        certify(root.parent / name, right, "--precision", "0.9", rounds=4)
        log = JudgementLog(root.parent / name / JUDGEMENTS, RUN)
        lines.append(values_of(log.plans.values(), "plan", "strata", "questions"))
    assert lines[0] == lines[1]
    keys = [question.key for _, _, questions in lines[0] for question in questions]
    assert len(set(keys)) == len(keys) > 100  # without replacement
