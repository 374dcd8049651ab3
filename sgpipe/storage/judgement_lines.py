"""The lines of a run's judgements: what people say of relations, the plans that ask them, and their answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from sgpipe.utils import LARGEST_SEED

CERTIFICATE_PLAN = "certificate-"  # what the ids of such plans, and of no others, begin with
Kind = Literal["bands", "predicates", "search", "certificate", "doubts"]
MOST_QUESTIONS = 10_000  # of a plan, which is one line
Id = Annotated[str, StringConstraints(pattern=r"^[\w.:-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
_Confidence = Annotated[float, Field(allow_inf_nan=False)]  # a run may hold others than 0 to 1


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RelationKey(NamedTuple):
    """The address of a relation: indices into the objects of its image, and its predicate."""

    split: str
    image_id: str
    subject: int
    object: int
    predicate: str


class Correction(Strict):
    """What a person changes about a relation.

    `predicate`: it has another one; `swap`: subject and object change places; `add`: the run lacks
    it.
    """

    action: Literal["predicate", "swap", "delete", "add"]
    predicate: Name | None = None

    @model_validator(mode="after")
    def _names_a_predicate(self) -> Correction:
        if (self.action == "predicate") != (self.predicate is not None):
            raise ValueError("a change of action 'predicate', and no other, has a predicate")
        return self


class Judgement(Strict):
    """One person's judgement of one relation.

    It says whether the relation is right, changes it, or takes an earlier judgement back.

    The client makes its `id`; one that is sent again has the same. `at` is UTC, `run` the
    fingerprint of the run, and `confidence` that of the relation there. Without a `plan`, nobody
    asked: it is not part of a random sample.
    """

    id: Id
    at: Text
    by: Name
    run: Text
    split: Text
    image_id: Text
    subject: Index
    object: Index
    predicate: Annotated[str, StringConstraints(min_length=1)]
    subject_category: str | None = None
    object_category: str | None = None
    confidence: _Confidence | None = None
    judgement: Literal["right", "wrong", "unsure", "skip"] | None = None
    change: Correction | None = None
    undoes: Id | None = None
    plan: Id | None = None
    stratum: Index | None = None

    @model_validator(mode="after")
    def _says_one_thing(self) -> Judgement:
        if [self.judgement, self.change, self.undoes].count(None) != 2:
            raise ValueError("a line has either a judgement, a change or undoes")
        return self

    @property
    def key(self) -> RelationKey:
        return RelationKey(self.split, self.image_id, self.subject, self.object, self.predicate)

    @property
    def is_addition(self) -> bool:
        return self.change is not None and self.change.action == "add"

    @property
    def outcome(self) -> frozenset[RelationKey] | None:
        """What the judgement leaves of the relation; None: unsure.

        That is the relation itself, what it was changed into, or nothing.
        """
        if self.change is None:
            return {"right": frozenset({self.key}), "wrong": frozenset[RelationKey]()}.get(
                self.judgement or ""
            )
        changed = {
            "predicate": [self.key._replace(predicate=self.change.predicate or "")],
            "swap": [self.key._replace(subject=self.object, object=self.subject)],
            "delete": [],
            "add": [self.key],
        }
        return frozenset(changed[self.change.action])


class PlanStratum(Strict):
    """A part of the relations that a plan is about, of which some are asked about, at random.

    A band of confidence, or of relations without one; a predicate, or all others (None); or a cell
    of a certificate's round, as `sgpipe.stats.certificates.Round` has it.
    """

    name: str
    relations: Annotated[int, Field(ge=0)]
    sampled: Annotated[int, Field(ge=0)]
    start: float | None = None
    stop: float | None = None
    predicate: str | None = None
    level: Annotated[int, Field(ge=0)] | None = None
    scores: Annotated[list[_Confidence], Field(min_length=2, max_length=2)] | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class CertifiedGroup(Strict):
    """The relations of a predicate, or all (None), in a round of a certificate.

    Nested sets have minimum confidences and numbers of relations, the strictest first. `start`,
    `capital`: as `sgpipe.stats.certificates.Round` has them. `odds`: log odds of errors at scores
    of 0; slopes.
    """

    predicate: str | None
    thresholds: Annotated[list[float], Field(min_length=1)]
    relations: Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
    odds: Annotated[list[_Confidence], Field(min_length=3, max_length=3)]
    start: Annotated[int, Field(ge=0)] | None
    capital: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> CertifiedGroup:
        if self.start is not None and (self.start >= len(self.relations) or not self.capital):
            raise ValueError("a chain of tests starts at a set, with some capital")
        return self


class CertificateSettings(Strict):
    """What is to be certified: the precision of relations with at least the threshold, with a
    confidence.

    `by` predicate: of the relations of each; `family`: how many relations share the confidence,
    None: it is of each by itself. `prediction`: the column that predicts which are wrong.
    `population`: a digest of the sets of relations, so that a run that has changed has another
    plan.
    """

    precision: Annotated[float, Field(gt=0, le=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    by: Literal["predicate"] | None = None
    threshold: _Confidence | None = None
    prediction: Literal["vlm_score", "clip_score", "confidence", "none"] = "confidence"
    population: str | None = None
    family: Annotated[int, Field(gt=0)] | None = None

    @property
    def id(self) -> str:
        """The name of the plan, which all of its rounds begin with."""
        absent = {name for name in ("population", "family") if getattr(self, name) is None}
        values = self.model_dump_json(exclude=absent)
        return CERTIFICATE_PLAN + hashlib.sha256(values.encode()).hexdigest()[:12]

    @property
    def scope(self) -> str:
        """What the confidence is of, in words, after it; empty if it is of one set of relations."""
        if self.by is None:
            return ""
        return ", each predicate by itself" if self.family is None else ", all predicates together"


class CertificateRound(Strict):
    """A round of questions of a certificate's plan, numbered from 0."""

    settings: CertificateSettings
    number: Annotated[int, Field(ge=0)]
    groups: list[CertifiedGroup]


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


class PlanLine(Strict):
    """What people are asked about."""

    plan: Id
    at: Text
    by: Name
    run: Text
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)]

    @property
    def id(self) -> str:
        return self.plan


class SamplingPlan(PlanLine):
    """A stratified random sample of relations, in the random order in which they are asked.

    By bands of confidence or by predicates, by bands of a `search` (its parameters in the URL), or
    for a certificate. Doubts are no random sample, and their `confidence` is the probability by the
    layout model; some of them are relations that the run lacks.
    """

    kind: Kind
    search: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    strata: list[PlanStratum]
    questions: Annotated[list[PlannedQuestion], Field(max_length=MOST_QUESTIONS)]
    certificate: CertificateRound | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> SamplingPlan:
        asked = Counter(question.stratum for question in self.questions)
        sampled = {
            number: stratum.sampled for number, stratum in enumerate(self.strata) if stratum.sampled
        }
        if asked != sampled or any(stratum.sampled > stratum.relations for stratum in self.strata):
            raise ValueError("the questions are not those that the strata say")
        if (self.kind == "certificate") != (self.certificate is not None):
            raise ValueError("a round of a certificate, and no other plan, has a certificate")
        return self


class BlindQuestion(NamedTuple):
    """Boxes of an image between which people say what holds; `weight`: pairs of the image for each
    pair of these.
    """

    split: str
    image_id: str
    boxes: list[int]
    weight: float

    @property
    def place(self) -> tuple[str, str]:
        return self.split, self.image_id


class RecallPlan(PlanLine):
    """A random sample of the run's `images` with two boxes or more, in the order in which they are
    asked about.
    """

    kind: Literal["recall"]
    images: Annotated[int, Field(ge=1)]
    questions: Annotated[list[BlindQuestion], Field(min_length=1, max_length=MOST_QUESTIONS)]


class NamedRelation(Strict):
    """A relation that a person names."""

    subject: Index
    object: Index
    predicate: Name


class BlindAnswer(Strict):
    """All that a person says holds between the boxes of a question without seeing the run's
    relations; None: skipped.

    Of several answers of one person to one question, the latest in the file counts.
    """

    id: Id
    at: Text
    by: Name
    run: Text
    plan: Id
    split: Text
    image_id: Text
    relations: Annotated[list[NamedRelation], Field(max_length=1000)] | None


Line = Judgement | SamplingPlan | RecallPlan | BlindAnswer
_KINDS: dict[bytes, type[Line]] = {
    b"strata": SamplingPlan,
    b"images": RecallPlan,
    b"relations": BlindAnswer,
}


def parse_line(data: bytes) -> Line:
    """Return a line of the file.

    Raises:
        ValueError: it is not one; the message has one line.
    """
    kinds = (kind for field, kind in _KINDS.items() if b'"%s":' % field in data)
    kind = next(kinds, Judgement)
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise ValueError(describe_invalid(error)) from None


def describe_invalid(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
