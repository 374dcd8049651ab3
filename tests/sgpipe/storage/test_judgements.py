import errno
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sgpipe.errors import UserError
from sgpipe.storage.judgement_lines import (
    Correction,
    Judgement,
    PlannedQuestion,
    PlanStratum,
    RelationKey,
    SamplingPlan,
)
from sgpipe.storage.judgements import JUDGEMENTS, JudgementLog, RelationState
from tests.values import values_of

RUN = "f" * 16
KEY = RelationKey("val", "7", 0, 1, "on")
SWAPPED = KEY._replace(subject=1, object=0)
RIGHT = {"judgement": "right"}
WRONG = {"judgement": "wrong"}
UNSURE = {"judgement": "unsure"}
PERSONS = st.sampled_from(["anna", "ben", "cleo"])
STEPS = st.lists(
    st.tuples(
        PERSONS, st.integers(0, 2), st.sampled_from(["right", "wrong", "unsure", "skip", "undo"])
    ),
    max_size=30,
)


def line(by: str = "anna", key: RelationKey = KEY, **values: object) -> Judgement:
    values = {"id": uuid.uuid4().hex, "at": "2026-11-26T09:00:00Z", "run": RUN, **(values or RIGHT)}
    if "judgement" not in values and not {"change", "undoes"} & values.keys():
        values |= RIGHT
    return Judgement.model_validate({**key._asdict(), "by": by, **values})


def change(action: str, predicate: str | None = None) -> dict[str, object]:
    return {"change": Correction.model_validate({"action": action, "predicate": predicate})}


@pytest.fixture
def log(tmp_path: Path) -> JudgementLog:
    return JudgementLog(tmp_path / JUDGEMENTS, RUN)


def states(log: JudgementLog) -> dict[RelationKey, str]:
    return dict(values_of(log.current(), "key", "state"))


def test_what_is_appended_is_read_back_and_a_repeated_id_is_not_written(log):
    first = log.append(line())
    assert log.append(line(id=first.id, **WRONG)) == first
    judgement_log = JudgementLog(log.file, RUN)
    assert judgement_log.lines[first.id] == first
    assert len(log.file.read_bytes().splitlines()) == 1
    assert not judgement_log.problems


@pytest.mark.parametrize(
    ("answers", "state", "majority", "latest"),
    [
        ([RIGHT], "right", {KEY}, {KEY}), ([UNSURE], "unsure", None, None),
        ([RIGHT, UNSURE], "unsure", None, {KEY}), ([RIGHT, RIGHT, UNSURE], "right", {KEY}, {KEY}),
        ([RIGHT, UNSURE, UNSURE, UNSURE], "unsure", None, {KEY}), ([WRONG, UNSURE], "unsure", None, set()),
        ([WRONG, change("delete")], "wrong", set(), set()),
        ([change("predicate", "under")], "changed", {KEY._replace(predicate="under")}, ...),
        ([change("swap")], "changed", {SWAPPED}, ...),
        ([change("add")], "right", {KEY}, ...), ([change("predicate", "on")], "right", {KEY}, ...),
        ([RIGHT, WRONG], "conflict", None, set()), ([WRONG, RIGHT, RIGHT, WRONG, RIGHT], "conflict", {KEY}, {KEY}),
        ([change("swap"), WRONG, WRONG], "conflict", set(), set()),
        ([RIGHT, change("swap"), WRONG], "conflict", set(), set()),
        ([RIGHT, RIGHT, change("swap"), WRONG], "conflict", None, set()),
        ([RIGHT, RIGHT, change("swap"), change("predicate", "under"), WRONG], "conflict", set(), set()),
        ([RIGHT, WRONG, change("swap"), change("swap"), change("swap")], "conflict", {SWAPPED}, {SWAPPED}),
    ],
)  # fmt: skip
def test_what_is_left_of_a_relation(answers, state, majority, latest):
    added = answers == [change("add")]
    judgements = tuple(line(f"person {number}", **answer) for number, answer in enumerate(answers))
    relation_state = RelationState(KEY, judgements, True if added else None)
    assert relation_state.state == state
    assert relation_state.resolve() == majority
    assert relation_state.resolve("latest") == (majority if latest is ... else latest)
    assert relation_state.resolve("drop") == (set() if state == "conflict" else majority)
    assert relation_state.is_conflict == (state == "conflict")
    assert relation_state.is_added == added


ANSWERS = [
    RIGHT,
    WRONG,
    UNSURE,
    change("swap"),
    change("predicate", "under"),
    change("predicate", "near"),
]


@given(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=7))
def test_what_people_say_counts_only_if_more_say_it_than_all_else_together(answers):
    state = RelationState(
        KEY, tuple(line(f"person {number}", **answer) for number, answer in enumerate(answers))
    )
    persons = len(answers)
    assert (state.verdict == "right") == (answers.count(RIGHT) > persons / 2)
    assert (state.verdict == "wrong") == (
        persons - answers.count(RIGHT) - answers.count(UNSURE) > persons / 2
    )
    left = state.resolve()
    assert (left is None) == (state.verdict is None)
    if left:
        agreeing = [judgement for judgement in state.judgements if judgement.outcome == left]
        assert len(agreeing) > persons / 2


@pytest.mark.parametrize(
    ("further", "left"), [([], {KEY}), ([UNSURE, UNSURE], {KEY}), ([WRONG], None)]
)
def test_an_addition_stays_unless_somebody_denies_it(further, left):
    answers = [change("add"), *further]
    judgements = tuple(line(f"person {number}", **answer) for number, answer in enumerate(answers))
    assert RelationState(KEY, judgements, addition=True).resolve() == left


@pytest.mark.parametrize("torn", [b"{", b'{"id":"x', '{"by":"ä'.encode()[:-1], b"\xff\xfe"])
def test_a_torn_last_line_is_named_and_does_not_spoil_the_next_one(log, torn):
    appended = log.append(line())
    with log.file.open("ab") as file:
        file.write(torn)
    judgement_log = JudgementLog(log.file, RUN)
    assert appended.id in judgement_log.lines
    assert "cut short" in judgement_log.problems[0]
    new = judgement_log.append(line("ben"))
    assert [problem.partition(" of ")[0] for problem in judgement_log.problems] == ["line 2"]
    assert log.append(line(id=new.id)) == new  # a second server on the run
    assert log.problems == JudgementLog(log.file, RUN).problems == judgement_log.problems
    assert len(list(log.state("val", "7")[0].judgements)) == 2


def test_lines_of_other_runs_and_lines_that_are_none_are_named(log):
    other = line(run="another")
    with pytest.raises(UserError, match="another run"):
        log.append(other)
    bad = [
        b"[]",
        b"no JSON",
        *(line().model_dump_json().replace('"right"', x).encode() for x in ('"perhaps"', "null")),
    ]
    log.file.write_bytes(
        b"\n".join(
            [line().model_dump_json().encode(), other.model_dump_json().encode(), *bad, b"", b""]
        )
    )
    log.reload()
    assert [problem.partition(" of ")[0] for problem in log.problems[1:]] == [
        f"line {n}" for n in range(3, 7)
    ]
    assert "1 line of another run (fingerprint another)" in log.problems[0]
    assert states(log) == {KEY: "right"}


def test_a_file_that_was_replaced_is_read_anew(log):
    log.append(line(key=KEY._replace(image_id="1")))
    log.append(line(key=KEY._replace(image_id="2")))
    rest = log.file.with_name("new")
    rest.write_bytes(log.file.read_bytes().splitlines(keepends=True)[1])
    os.replace(rest, log.file)
    log.reload()
    assert values_of(states(log), "image_id") == ["2"]
    log.file.write_text(
        "".join(line(key=KEY._replace(image_id=str(n))).model_dump_json() + "\n" for n in range(3))
    )
    log.reload()  # in place
    assert values_of(states(log), "image_id") == ["0", "1", "2"]
    log.file.unlink()
    log.reload()
    assert not states(log)
    log.reload()
    log.append(line())
    assert states(log) == {KEY: "right"}


@pytest.mark.parametrize("failing", ["write", "fsync", "short"])
def test_what_cannot_be_saved_leaves_the_file_as_it_was_and_can_be_sent_again(
    log, monkeypatch, failing
):
    log.append(line())
    before = log.file.read_bytes()
    answer = line("ben")
    real = os.write

    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        if failing == "short":
            patch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
        else:
            patch.setattr(os, failing, fail)
        with pytest.raises(OSError, match=str(log.file)) as caught:
            log.append(answer)
    assert caught.value.errno == errno.ENOSPC
    assert log.file.read_bytes() == before
    assert answer.id not in log.lines
    assert log.append(answer) == answer
    assert JudgementLog(log.file, RUN).lines[answer.id] == answer


def test_several_logs_and_threads_lose_and_repeat_nothing(tmp_path):
    logs = [JudgementLog(tmp_path / JUDGEMENTS, RUN) for _ in range(3)]
    answers = [line(f"person {n % 3}", KEY._replace(image_id=str(n))) for n in range(60)]

    def send(log: JudgementLog, part: list[Judgement]) -> None:
        for answer in part:
            assert log.append(answer) == answer

    parts = [(log, answers[start : start + 40]) for log in logs for start in (0, 20)]
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(send, *zip(*parts, strict=True)))
    written = list(map(Judgement.model_validate_json, logs[0].file.read_text().splitlines()))
    assert sorted(values_of(written, "id")) == sorted(values_of(answers, "id"))
    for log in logs:
        log.reload()
        assert states(log) == {answer.key: "right" for answer in answers}


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
def test_replay_agrees_with_each_persons_own_list(tmp_path_factory, steps):
    log = JudgementLog(tmp_path_factory.mktemp("log") / JUDGEMENTS, RUN)
    given_: dict[tuple[str, int], list[str]] = {}
    undoable: dict[str, list[tuple[str, int]]] = {}
    for by, image, action in steps:
        if action == "undo":
            if undoable.get(by):
                id_, at = undoable[by].pop()
                given_[by, at].pop()
                log.append(line(by, KEY._replace(image_id=str(at)), undoes=id_))
            continue
        answer = log.append(line(by, KEY._replace(image_id=str(image)), judgement=action))
        if action != "skip":
            given_.setdefault((by, image), []).append(action)
            undoable.setdefault(by, []).append((answer.id, image))
    expected = {place: answers[-1] for place, answers in given_.items() if answers}
    for replayed in (log, JudgementLog(log.file, RUN)):
        current = {
            (a.by, int(state.key.image_id)): a.judgement
            for state in replayed.current()
            for a in state.judgements
        }
        assert current == expected


def plan(**values: object) -> SamplingPlan:
    strata = [PlanStratum(name="0.00 to 0.10", relations=5, sampled=1, start=0.0, stop=0.1)]
    questions = [PlannedQuestion(*KEY, "cat", "sofa", 0.05, 0)]
    all_ = {"plan": "p1", "at": "", "by": "anna", "run": RUN, "kind": "bands", "seed": 0} | values
    return SamplingPlan.model_validate({"strata": strata, "questions": questions} | all_)


def test_plans_are_lines_too_and_know_what_was_answered_when_they_asked(log):
    assert log.append(plan()) == plan()
    log.append(line("ben"))
    answer = log.append(line("anna", plan="p1", stratum=0))
    log.append(line("cleo", plan="p1", stratum=0, judgement="skip"))
    judgement_log = JudgementLog(log.file, RUN)
    assert judgement_log.plans == {"p1": plan()}
    assert judgement_log.judged("p1") == {KEY}
    assert (judgement_log.skipped("p1", "cleo"), judgement_log.skipped("p1", "anna")) == (
        {KEY: 1},
        {},
    )
    log.append(line("anna", undoes=answer.id))
    assert log.judged("p1") == set()


def test_plans_that_contradict_themselves_are_refused():
    for wrong in (
        *(
            {"questions": questions}
            for questions in ([], [PlannedQuestion(*KEY, "cat", "sofa", 0.05, 1)])
        ),
        {"strata": [PlanStratum(name="", relations=0, sampled=1)]},
        {"seed": -1},
        {"kind": "other"},
        {"kind": "certificate"},
    ):
        with pytest.raises(ValidationError):
            plan(**wrong)
