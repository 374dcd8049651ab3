"""The lines of a file of judgements: a person's answer about a relation, or a plan of which relations to ask about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from sgpipe.utils import LARGEST_SEED

MOST_QUESTIONS = 10_000  # of a plan, which is one line
Verdict = Literal["right", "wrong", "unsure", "skip"]
Kind = Literal["bands", "predicates", "search"]
_Id = Annotated[str, StringConstraints(pattern=r"^[\w.:-]{1,64}$")]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_Text = Annotated[str, StringConstraints(max_length=1000)]
_Index = Annotated[int, Field(ge=0, lt=2**31)]
_Confidence = Annotated[float, Field(allow_inf_nan=False)]  # a run may hold others than 0 to 1


class RelationKey(NamedTuple):
    """The address of a relation in a run: indices into the objects of its image, and its predicate."""

    split: str
    image_id: str
    subject: int
    object: int
    predicate: str


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def to_json(self) -> str:
        """Strict JSON on one line."""
        return self.model_dump_json()


class Correction(BaseModel):
    """What a person changes about a relation.

    `predicate`: it has another one; `swap`: subject and object change places; `delete`: it is not there; `add`: the run
    lacks the relation of the line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    action: Literal["predicate", "swap", "delete", "add"]
    predicate: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _names_a_predicate(self) -> Correction:
        if (self.action == "predicate") != (self.predicate is not None):
            raise ValueError("a change of action 'predicate', and no other, has a predicate")
        return self


class Judgement(_Line):
    """One person's answer about one relation: a verdict, a change, or that an earlier answer is taken back.

    Attributes:
        id: made by the client; an answer that is sent again has the same.
        at: when it was written, UTC. by: who gave it.
        run: fingerprint of the run.
        confidence: of the relation in the run; None: it has none, as annotated and added ones.
        undoes: the id of an answer by the same person.
        plan, stratum: the plan that asked, and the index of the relation's stratum in it. None: nobody asked, so that
            the relation is not part of a random sample.
    """

    id: _Id
    at: _Text
    by: _Name
    run: _Text
    split: _Text
    image_id: _Text
    subject: _Index
    object: _Index
    predicate: Annotated[str, StringConstraints(min_length=1)]
    subject_category: str | None = None
    object_category: str | None = None
    confidence: _Confidence | None = None
    verdict: Verdict | None = None
    change: Correction | None = None
    undoes: _Id | None = None
    plan: _Id | None = None
    stratum: _Index | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Judgement:
        if [self.verdict, self.change, self.undoes].count(None) != 2:
            raise ValueError("a line has either a verdict, a change or undoes")
        return self

    @property
    def key(self) -> RelationKey:
        return RelationKey(self.split, self.image_id, self.subject, self.object, self.predicate)

    @property
    def outcome(self) -> frozenset[RelationKey] | None:
        """What the answer leaves of the relation: itself, what it was changed into, or nothing; None: no opinion."""
        if self.change is None:
            return {"right": frozenset({self.key}), "wrong": frozenset[RelationKey]()}.get(self.verdict or "")
        changed = {
            "predicate": [self.key._replace(predicate=self.change.predicate or "")],
            "swap": [self.key._replace(subject=self.object, object=self.subject)],
            "delete": [],
            "add": [self.key],
        }
        return frozenset(changed[self.change.action])


class PlanStratum(BaseModel):
    """A part of the relations that a plan is about.

    Attributes:
        relations: how many there are. sampled: how many of them are asked about, at random.
        start, stop: of a band of confidence; both None: relations without one.
        predicate: of a plan by predicates; None: all that have no stratum of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    relations: Annotated[int, Field(ge=0)]
    sampled: Annotated[int, Field(ge=0)]
    start: float | None = None
    stop: float | None = None
    predicate: str | None = None


class PlannedQuestion(NamedTuple):
    """A relation that a plan asks about; `stratum` is an index into the strata."""

    split: str
    image_id: str
    subject: int
    object: int
    predicate: str
    subject_category: str
    object_category: str
    confidence: float | None
    stratum: int

    @property
    def key(self) -> RelationKey:
        return RelationKey(*self[:5])


class SamplingPlan(_Line):
    """A stratified random sample of relations, in the random order in which they are asked.

    Attributes:
        plan: the id of the plan, made by the server.
        kind: by bands of confidence or by predicates of the whole run, or by bands of the relations of a search.
        search: the parameters of the search, as in its URL.
    """

    plan: _Id
    at: _Text
    by: _Name
    run: _Text
    kind: Kind
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]
    search: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    strata: list[PlanStratum]
    questions: Annotated[list[PlannedQuestion], Field(max_length=MOST_QUESTIONS)]

    @model_validator(mode="after")
    def _is_consistent(self) -> SamplingPlan:
        sampled = [0] * len(self.strata)
        for question in self.questions:
            if question.stratum not in range(len(self.strata)):
                raise ValueError("a question is in a stratum that the plan does not have")
            sampled[question.stratum] += 1
        if sampled != [stratum.sampled for stratum in self.strata]:
            raise ValueError("the strata do not have as many questions as they say")
        if any(stratum.sampled > stratum.relations for stratum in self.strata):
            raise ValueError("a stratum has more questions than relations")
        return self

    @property
    def id(self) -> str:
        return self.plan

    @property
    def search_terms(self) -> list[tuple[str, str]]:
        """The parameters of the search."""
        return parse_qsl(self.search or "")

    @property
    def is_of_run(self) -> bool:
        """Whether it is a sample of the whole run."""
        return self.kind != "search"


def parse_line(data: bytes) -> Judgement | SamplingPlan:
    """A line of the file. Raises ValueError, whose text is one line: it is none."""
    try:
        text = data.decode()
        kind: type[Judgement] | type[SamplingPlan] = SamplingPlan if '"strata":' in text else Judgement
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise ValueError(describe_invalid(error)) from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def describe_invalid(error: ValidationError) -> str:
    """The first fault of a line, in one line."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]


def utc_now() -> str:
    """The time as lines have it."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


Conflicts = Literal["majority", "latest", "drop"]


class RelationState(NamedTuple):
    """What people say about a relation now: the latest answer of each person, those taken back left out.

    Attributes:
        answers: in the order of the file; skipped questions are none.
    """

    key: RelationKey
    answers: tuple[Judgement, ...]

    @property
    def is_conflict(self) -> bool:
        """Whether persons differ; who is unsure does not."""
        return len({answer.outcome for answer in self.answers} - {None}) > 1

    @property
    def is_added(self) -> bool:
        """Whether people say that the run lacks it."""
        return any(answer.change is not None and answer.change.action == "add" for answer in self.answers)

    @property
    def state(self) -> Literal["right", "wrong", "unsure", "changed", "conflict"]:
        """In one word; an added relation is right, a deleted one wrong."""
        if self.is_conflict:
            return "conflict"
        outcome = next((answer.outcome for answer in self.answers if answer.outcome is not None), None)
        if outcome is None:
            return "unsure"
        return "right" if self.key in outcome else "changed" if outcome else "wrong"

    def resolve(self, conflicts: Conflicts = "majority") -> frozenset[RelationKey] | None:
        """What is left of the relation; None: it stays as it is in the run.

        Args:
            conflicts: where persons differ, what most of them say, and with a tie it stays; what the latest answer
                says; or nothing is left.
        """
        outcomes = [answer.outcome for answer in self.answers if answer.outcome is not None]
        if not outcomes or len(set(outcomes)) == 1 or conflicts == "latest":
            return outcomes[-1] if outcomes else None
        if conflicts == "drop":
            return frozenset()
        counts = sorted(((outcomes.count(outcome), outcome) for outcome in set(outcomes)), key=lambda item: -item[0])
        return counts[0][1] if counts[0][0] > counts[1][0] else None

    def as_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        answers = [answer.model_dump(mode="json") for answer in self.answers]
        return {**self.key._asdict(), "state": self.state, "added": self.is_added, "answers": answers}
