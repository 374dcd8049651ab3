"""The judgements of a run: a file of JSON lines to which people append, and their present state.

A line is a judgement or a plan of what to ask. It is synced before `append` returns, so that a
killed process loses nothing that it acknowledged; flock lets in one process at a time. Lines that
cannot be read stay, and are named.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sgpipe.errors import UserError, add_filename
from sgpipe.storage.fiftyone_answers import read_answers
from sgpipe.storage.judgement_lines import (
    BlindAnswer,
    Judgement,
    Line,
    RecallPlan,
    RelationKey,
    SamplingPlan,
    parse_line,
    utc_now,
)
from sgpipe.storage.manifest import append_line, sync_folder
from sgpipe.utils.console import count

JUDGEMENTS = "judgements.jsonl"
CERTIFICATE = "certificate.json"  # beside it

Conflicts = Literal["majority", "latest", "drop"]
_PROBLEMS_NAMED = 20
_COMPARED = 2048  # bytes, by which a file that others have changed is recognised


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
        """Read what other processes have appended.

        Raises:
            UserError: as `__init__`.
        """
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
