"""The judgements of a run: a file of JSON lines to which people's answers are appended, and their present state.

A line is written whole and synced before `append` returns, so that a killed process loses nothing that it acknowledged.
Several processes may append to one file: a lock of the system (flock) lets in one at a time. Lines that cannot be read,
such as one that a power cut tore, stay in the file, and are named.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sgpipe.errors import UserError, naming
from sgpipe.storage.judgement_lines import Judgement, RelationKey, RelationState, SamplingPlan, parse_line
from sgpipe.storage.manifest import sync_folder
from sgpipe.utils.console import count

JUDGEMENTS = "judgements.jsonl"
_PROBLEMS_NAMED = 20
_NO_FLOCK = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}  # of file systems without locks
_COMPARED = 2048  # bytes, by which a file that others have changed is recognised


class JudgementLog:
    """A file of judgements, read once and kept up to date; threads may share it.

    Attributes:
        file: the file, which need not exist. read_only: whether `append` is refused.
        version: changes when lines are added.
        plans: the sampling plans, by id.
    """

    def __init__(self, file: Path, fingerprint: str, *, read_only: bool = False) -> None:
        """
        Args:
            file: of a run: `root / JUDGEMENTS`.
            fingerprint: of the run; lines of other runs are left out, and named.

        Raises UserError: the file cannot be read.
        """
        self.file, self.fingerprint, self.read_only = file, fingerprint, read_only
        self.version = 0
        self._mutex = threading.RLock()
        self._forget()
        self.reload()

    @property
    def problems(self) -> list[str]:
        """One line for each line that is left out, and why; of many, the first ones."""
        torn = [f"the last line of {self.file} was cut short, so it is left out"] if self._torn else []
        others = [
            f"{self.file} has {count(lines, 'line')} of another run (fingerprint {run[:80]}): left out"
            for run, lines in self._others.items()
        ]
        more = self._bad - len(self._named)
        return [*others, *self._named, *([f"{count(more, 'further line')} left out"] if more else []), *torn]

    def append(self, line: Judgement | SamplingPlan) -> Judgement | SamplingPlan:
        """Write a line and sync it; if its id is there already, nothing is written.

        Returns:
            the line as it is stored.

        Raises:
            UserError: the log is read-only, or the line is of another run.
            OSError: it is not saved, as the disk is full or the folder cannot be written.
        """
        if self.read_only:
            raise UserError(f"{self.file} is read-only: nothing is saved")
        if line.run != self.fingerprint:
            raise UserError(f"the answer is about another run (fingerprint {line.run[:80]})")
        with self._mutex, naming(self.file), self._opened(os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            self._read(descriptor)
            if (stored := self._lines.get(line.id)) is None:
                self._write(descriptor, line.to_json().encode() + b"\n")
                self._read(descriptor)
                stored = self._lines[line.id]
        return stored

    def reload(self) -> bool:
        """Read what other processes have appended; True if there was anything. Raises UserError: as `__init__`."""
        before = self.version
        try:
            with self._mutex, self._opened(os.O_RDONLY) as descriptor:
                self._read(descriptor)
        except FileNotFoundError:
            if self._lines:
                self._forget()
        except OSError as error:
            raise UserError(f"{self.file} cannot be read: {error.strerror}") from None
        return self.version != before

    def find(self, id: str) -> Judgement | SamplingPlan | None:
        """The line with this id."""
        return self._lines.get(id)

    def state(self, split: str, image_id: str) -> list[RelationState]:
        """What people say now about the relations of an image, in the order in which they were first judged."""
        with self._mutex:
            latest: dict[RelationKey, dict[str, Judgement]] = defaultdict(dict)
            for line in self._images.get((split, image_id), ()):
                if self._counts(line):
                    latest[line.key].pop(line.by, None)  # so that answers stay in the order of the file
                    latest[line.key][line.by] = line
            return [RelationState(key, tuple(answers.values())) for key, answers in latest.items()]

    def current(self) -> Iterator[RelationState]:
        """What people say now about all judged relations."""
        for split, image_id in list(self._images):
            yield from self.state(split, image_id)

    def answered(self, plan: str) -> dict[RelationKey, set[str]]:
        """The relations that were judged when a plan asked, each with who judged it; answers may have changed since."""
        with self._mutex:
            persons: dict[RelationKey, set[str]] = defaultdict(set)
            for line in self._of_plans.get(plan, ()):
                if self._counts(line):
                    persons[line.key].add(line.by)
            return persons

    def skipped(self, plan: str) -> dict[RelationKey, dict[str, int]]:
        """The relations that were skipped when a plan asked, each with who skipped it and when, as a number."""
        with self._mutex:
            persons: dict[RelationKey, dict[str, int]] = defaultdict(dict)
            for number, line in enumerate(self._of_plans.get(plan, ())):
                if line.verdict == "skip":
                    persons[line.key][line.by] = number
            return persons

    def _counts(self, line: Judgement) -> bool:
        """Whether it is an answer that its person has not taken back; one that was skipped is no answer."""
        return line.verdict != "skip" and (line.id, line.by) not in self._undone

    def _forget(self) -> None:
        self.version += 1
        self.plans: dict[str, SamplingPlan] = {}
        self._lines: dict[str, Judgement | SamplingPlan] = {}
        self._images: dict[tuple[str, str], list[Judgement]] = {}
        self._of_plans: dict[str, list[Judgement]] = defaultdict(list)
        self._undone: set[tuple[str, str]] = set()  # lines that were taken back, and by whom
        self._others: dict[str, int] = {}
        self._named: list[str] = []
        self._bad = 0
        self._offset, self._number, self._torn = 0, 1, False  # of what follows the last whole line
        self._file: os.stat_result | None = None
        self._before = b""  # the bytes before the offset

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        """The locked file: shared to read, exclusive to write. Another may have replaced it while this one waited."""
        kind = fcntl.LOCK_SH if flags == os.O_RDONLY else fcntl.LOCK_EX
        while True:
            descriptor = os.open(self.file, flags | os.O_CLOEXEC, 0o666)
            try:
                _wait_for_lock(descriptor, kind)
                if _is_file(descriptor, self.file):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)

    def _write(self, descriptor: int, line: bytes) -> None:
        """Append a line and sync it; what is written of a line that fails is cut off again."""
        end = os.fstat(descriptor).st_size
        whole = not end or os.pread(descriptor, 1, end - 1) == b"\n"
        line = line if whole else b"\n" + line
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
        if not end:
            sync_folder(self.file.parent)

    def _read(self, descriptor: int) -> None:
        """Read what was appended since the last time, or everything if the file was changed in another way."""
        status, size = os.fstat(descriptor), len(self._before)
        known = self._file is not None and os.path.samestat(status, self._file)
        if not known or os.pread(descriptor, size, self._offset - size) != self._before:
            self._forget()
        self._file = status
        data = os.pread(descriptor, status.st_size - self._offset, self._offset)
        *lines, rest = data.split(b"\n")
        for line in lines:
            if line.strip():
                self._take(line, f"line {self._number}")
            self._number += 1
        self._offset += len(data) - len(rest)
        # Whoever wrote the rest is gone, as the file is locked. A whole line may lack its end in a file edited by hand.
        self._torn = bool(rest.strip())
        if self._torn:
            with suppress(ValueError):
                parse_line(rest)
                self._take(rest, f"line {self._number}")
                self._offset, self._torn = self._offset + len(rest), False
        start = max(self._offset - _COMPARED, 0)
        self._before = os.pread(descriptor, self._offset - start, start)

    def _take(self, data: bytes, name: str) -> None:
        try:
            line = parse_line(data)
        except ValueError as error:
            self._bad += 1
            if len(self._named) < _PROBLEMS_NAMED:
                self._named.append(f"{name} of {self.file} cannot be read, so it is left out ({error})")
            return
        if line.run != self.fingerprint:
            self._others[line.run] = self._others.get(line.run, 0) + 1
            return
        if line.id in self._lines:
            return
        self.version += 1
        self._lines[line.id] = line
        if isinstance(line, SamplingPlan):
            self.plans[line.plan] = line
        elif line.undoes is not None:
            self._undone.add((line.undoes, line.by))
        else:
            self._images.setdefault((line.split, line.image_id), []).append(line)
            if line.plan is not None:
                self._of_plans[line.plan].append(line)


def _wait_for_lock(descriptor: int, kind: int) -> None:
    """Where the file system has no locks, none is taken: a single server is safe there."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False
