"""The judgements of a run: a file of JSON lines to which people append, and their present state.

A line is a judgement or a plan of what to ask. It is synced before `append` returns, so that a
killed process loses nothing that it acknowledged; flock lets in one process at a time. Lines that
cannot be read stay, and are named.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from sgpipe.errors import UserError, add_filename
from sgpipe.storage.fiftyone_answers import read_answers
from sgpipe.storage.manifest import append_line, sync_folder
from sgpipe.utils import LARGEST_SEED
from sgpipe.utils.console import count

JUDGEMENTS = "judgements.jsonl"
CERTIFICATE = "certificate.json"  # beside it
CERTIFICATE_PLAN = "certificate-"  # what the ids of such plans, and of no others, begin with
Kind = Literal["bands", "predicates", "search", "certificate", "doubts"]
MOST_QUESTIONS = 10_000  # of a plan, which is one line
Id = Annotated[str, StringConstraints(pattern=r"^[\w.:-]{1,64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
_Confidence = Annotated[float, Field(allow_inf_nan=False)]  # a run may hold others than 0 to 1

Conflicts = Literal["majority", "latest", "drop"]
_PROBLEMS_NAMED = 20
_COMPARED = 2048  # bytes, by which a file that others have changed is recognised


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


class RelationState(NamedTuple):
    """What people say about a relation now: the latest judgement of each person.

    Those taken back are left out.
    What a person says counts only if more people say it than all else together. Who is unsure says
    something else. `addition`: whether somebody's addition of a relation that the run lacks stands,
    even if the same person has judged it since, or all were taken back. None: nobody added it.
    """

    key: RelationKey
    judgements: tuple[Judgement, ...]
    addition: bool | None = None

    @property
    def outcomes(self) -> list[frozenset[RelationKey]]:
        """What those who are sure leave of the relation."""
        outcomes = (judgement.outcome for judgement in self.judgements)
        return [outcome for outcome in outcomes if outcome is not None]

    @property
    def is_conflict(self) -> bool:
        """Whether persons differ; who is unsure does not."""
        return len(set(self.outcomes)) > 1

    @property
    def verdict(self) -> Literal["right", "wrong"] | None:
        """What most people say about the relation as the run has it; None: no majority.

        It does not matter what they change it into.
        Certificates and estimates of precision count a relation without a verdict as wrong.
        """
        right = sum(self.key in outcome for outcome in self.outcomes)
        if self._is_majority(right):
            return "right"
        return "wrong" if self._is_majority(len(self.outcomes) - right) else None

    def _is_majority(self, persons: int) -> bool:
        return 2 * persons > len(self.judgements)

    @property
    def is_added(self) -> bool:
        """Whether it is a relation that the run lacks: added, and neither deleted nor wrong."""
        return (
            self.addition is not None
            and self.state != "wrong"
            and (self.addition or self.state != "unsure")
        )

    @property
    def state(self) -> Literal["right", "wrong", "unsure", "changed", "conflict"]:
        """One word: an added relation is right, a deleted one wrong, an undecided one unsure."""
        if self.is_conflict:
            return "conflict"
        if self.verdict == "wrong":
            return "changed" if self.outcomes[0] else "wrong"
        return self.verdict or "unsure"

    def resolve(self, conflicts: Conflicts = "majority") -> frozenset[RelationKey] | None:
        """Return what is left of the relation; None: it stays as it is in the run.

        With the majority, it becomes what most people say. If most say that it is wrong, but no
        majority agrees on what is right instead, nothing is left. Without a verdict it stays, and
        so does an addition that nobody denies.
        """
        if conflicts == "latest" and self.outcomes:
            return self.outcomes[-1]
        if conflicts == "drop" and self.is_conflict:
            return frozenset()
        if self.verdict is None:
            is_denied = any(self.key not in outcome for outcome in self.outcomes)
            return frozenset({self.key}) if self.addition and not is_denied else None
        [(outcome, persons)] = Counter(self.outcomes).most_common(1)
        return outcome if self._is_majority(persons) else frozenset()

    def as_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        changed = None
        if self.state == "changed":
            changed = next(iter(self.resolve() or ()), None)
        return {
            **self.key._asdict(),
            "state": self.state,
            "added": self.is_added,
            "changed": changed and changed._asdict(),
            "judgements": [judgement.model_dump(mode="json") for judgement in self.judgements],
        }


class JudgementLog:
    """A file of judgements, read once and kept up to date; threads may share it.

    Attributes:
        file: need not exist, or is FiftyOne's samples.json.
        lines: by their ids.
        version: changes with the lines.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        """Read the file.

        Args:
            file: of judgements.
            fingerprint: of the run; lines of others are left out, and named.

        Raises:
            UserError: the file cannot be read.
        """
        self.file = file
        self.fingerprint = fingerprint
        self.version = 0
        self._mutex = threading.RLock()
        self._forget()
        self.reload()

    @property
    def problems(self) -> list[str]:
        """One line for each line that is left out, and why; of many, the first ones."""
        problems = [
            f"{self.file} has {count(lines, 'line')} of another run (fingerprint {run[:80]}):"
            " left out"
            for run, lines in self._others.items()
        ]
        problems += self._bad[:_PROBLEMS_NAMED]
        if self._torn:
            problems.append(f"the last line of {self.file} was cut short, so it is left out")
        return problems

    def append(self, line: Line) -> Line:
        """Write and sync a line unless its id is there; return the stored one.

        Raises:
            UserError: the file is FiftyOne's, or the line is about another run.
            OSError: the line is not saved.
        """
        if self.file.suffix == ".json":
            raise UserError(
                f"{self.file} is a dataset of FiftyOne: nothing is saved; pass a file of `sgpipe"
                " view`"
            )
        if line.run != self.fingerprint:
            raise UserError(f"the judgement is about another run (fingerprint {line.run[:80]})")
        with (
            self._mutex,
            add_filename(self.file),
            self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor,
        ):
            self._read(descriptor)
            stored = self.lines.get(line.id)
            if stored is None:
                self._write(descriptor, line.model_dump_json().encode() + b"\n")
                self._read(descriptor)
                stored = self.lines[line.id]
        return stored

    def reload(self) -> None:
        """Read what other processes have appended. Raises UserError: as `__init__`."""
        try:
            with self._mutex, self._opened(os.O_RDONLY) as descriptor:
                self._read(descriptor)
        except FileNotFoundError:
            if self.lines:
                self._forget()
        except OSError as error:
            raise UserError(f"{self.file} cannot be read: {error.strerror}") from None

    def state(self, split: str, image_id: str) -> list[RelationState]:
        """Return what people say now about the relations of an image, the first judged first."""
        with self._mutex:
            latest: dict[RelationKey, dict[str, Judgement]] = defaultdict(dict)
            additions: dict[RelationKey, bool] = {}
            for line in self._images.get((split, image_id), ()):
                if line.is_addition:
                    additions[line.key] = additions.get(line.key, False) or self._counts(line)
                if self._counts(line):
                    by_person = latest[line.key]
                    by_person.pop(line.by, None)  # judgements stay in the order of the file
                    by_person[line.by] = line
            return [
                RelationState(key, tuple(by_person.values()), additions.get(key))
                for key, by_person in latest.items()
            ]

    def was_added(self, key: RelationKey) -> bool:
        """Return whether people added a relation, even if they took it back: the run lacks it."""
        return any(
            line.is_addition and line.key == key
            for line in self._images.get((key.split, key.image_id), ())
        )

    def current(self) -> Iterator[RelationState]:
        """Yield what people say now about all judged relations."""
        for split, image_id in list(self._images):
            yield from self.state(split, image_id)

    def judged(self, plan: str) -> set[RelationKey]:
        """Return the relations that were judged when a plan asked, whatever people say now."""
        with self._mutex:
            return {line.key for line in self._of_plans.get(plan, ()) if self._counts(line)}

    def blind_answers(self, plan: str) -> dict[tuple[str, str], dict[str, BlindAnswer]]:
        """Return what each person answered to a recall plan, by split and image."""
        with self._mutex:
            return {place: dict(answers) for place, answers in self._blind.get(plan, {}).items()}

    def skipped(self, plan: str, by: str) -> dict[RelationKey, int]:
        """Return the relations that a person skipped when a plan asked, numbered in time."""
        with self._mutex:
            lines = enumerate(self._of_plans.get(plan, ()))
            return {
                line.key: number
                for number, line in lines
                if (line.judgement, line.by) == ("skip", by)
            }

    def _counts(self, line: Judgement) -> bool:
        """Return whether it is a judgement, not a skip, that its person has not taken back."""
        return line.judgement != "skip" and (line.id, line.by) not in self._undone

    def _forget(self) -> None:
        self.version += 1
        self.plans: dict[str, SamplingPlan] = {}
        self.recall_plans: dict[str, RecallPlan] = {}
        self._blind: dict[str, dict[tuple[str, str], dict[str, BlindAnswer]]] = {}
        self.lines: dict[str, Line] = {}
        self._images: dict[tuple[str, str], list[Judgement]] = {}
        self._of_plans: dict[str, list[Judgement]] = defaultdict(list)
        self._undone: set[tuple[str, str]] = set()  # lines that were taken back, and by whom
        self._others = Counter[str]()
        self._bad: list[str] = []
        # of what follows the last whole line
        self._offset = 0
        self._number = 1
        self._torn = False
        self._inode: int | None = None
        self._before = b""  # the bytes before the offset

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """Yield the locked file: shared to read, exclusive to write."""
        descriptor = os.open(self.file, flags | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # on a file system without locks a single server is safe
                fcntl.flock(descriptor, fcntl.LOCK_SH if flags == os.O_RDONLY else fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, line: bytes) -> None:
        end = os.fstat(descriptor).st_size
        if end and os.pread(descriptor, 1, end - 1) != b"\n":  # after a torn line
            line = b"\n" + line
        append_line(descriptor, line, end)
        if not end:
            sync_folder(self.file.parent)

    def _read(self, descriptor: int) -> None:
        """Read what was appended since the last time, or everything if it is another file."""
        status = os.fstat(descriptor)
        size = len(self._before)
        before = os.pread(descriptor, size, self._offset - size)
        if status.st_ino != self._inode or before != self._before:
            self._forget()
        self._inode = status.st_ino
        data = os.pread(descriptor, status.st_size - self._offset, self._offset)
        if self.file.suffix == ".json":
            return self._take_fiftyone(data)
        *lines, rest = data.split(b"\n")
        self._torn = False
        if rest.strip():
            try:
                parse_line(rest)
                # a whole line, which another program wrote
                lines = [*lines, rest]
                rest = b""
            except ValueError:
                self._torn = True  # whoever wrote it is gone, as the file is locked
        for line in lines:
            if line.strip():
                self._take(line, f"line {self._number}")
            self._number += 1
        self._offset += len(data) - len(rest)
        start = max(self._offset - _COMPARED, 0)
        self._before = os.pread(descriptor, self._offset - start, start)

    def _take_fiftyone(self, data: bytes) -> None:
        self._forget()
        for answer in read_answers(self.file, data, utc_now()):
            self._take(json.dumps(answer).encode(), f"relation {answer['id']}")

    def _take(self, data: bytes, name: str) -> None:
        try:
            line = parse_line(data)
        except ValueError as error:
            self._bad.append(f"{name} of {self.file} cannot be read, so it is left out ({error})")
            return
        if line.run != self.fingerprint:
            self._others[line.run] += 1
            return
        if line.id in self.lines:
            return
        self.version += 1
        self.lines[line.id] = line
        if isinstance(line, SamplingPlan):
            self.plans[line.plan] = line
        elif isinstance(line, RecallPlan):
            self.recall_plans[line.plan] = line
        elif isinstance(line, BlindAnswer):
            answers = self._blind.setdefault(line.plan, {})
            answers.setdefault((line.split, line.image_id), {})[line.by] = line
        elif line.undoes is not None:
            self._undone.add((line.undoes, line.by))
        else:
            self._images.setdefault((line.split, line.image_id), []).append(line)
            if line.plan is not None:
                self._of_plans[line.plan].append(line)
