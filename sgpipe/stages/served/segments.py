"""Answers of served models in the store of a run, so that no lost machine is paid for again.

Each segment is an object of a few hundred answers, whose name is the hash of its content. Segments
are written by a thread: a slow store keeps no request waiting.
"""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

from pydantic import BaseModel, ValidationError

from sgpipe.errors import EngineError, StoreError, UserError
from sgpipe.files.locations import StorePath

SECONDS_BETWEEN_SEGMENTS = 5.0
_LARGEST = 500  # answers of a segment that is written before its time
_SUFFIX = ".jsonl.gz"


class StoredAnswer(BaseModel):
    """The answer to a request, as a line of a segment.

    Attributes:
        request: its hash.
        choices: the answer, as JSON.
        usable: whether any choice is.
    """

    request: str
    choices: str
    usable: bool


class _Paid(BaseModel):
    """The first line of a segment: the tokens that were paid for its answers."""

    tokens: dict[str, int]


@dataclass(frozen=True)
class Segment:
    """Some answers, and the tokens that were paid for them."""

    answers: list[StoredAnswer]
    tokens: Counter[str]

    def content(self) -> bytes:
        """Return the bytes of the object, which depend on nothing else."""
        lines = [_Paid(tokens=dict(self.tokens)).model_dump_json()]
        lines += [answer.model_dump_json() for answer in self.answers]
        return gzip.compress("\n".join(lines).encode(), mtime=0)

    @classmethod
    def parse(cls, content: bytes) -> Segment:
        """Raises OSError, EOFError, ValueError: these are not a segment."""
        paid, *lines = gzip.decompress(content).decode().split("\n")
        answers = [StoredAnswer.model_validate_json(line) for line in lines]
        return cls(answers, Counter(_Paid.model_validate_json(paid).tokens))


class AnswerStore:
    """The segments of a run; its thread ends with the process.

    Attributes:
        folder: of the segments.
        note: is told the name of each segment before it is written.
    """

    def __init__(self, folder: StorePath, note: Callable[[str], None]) -> None:
        self.folder = folder
        self.note = note
        self._lock = threading.Lock()
        self._answers: list[StoredAnswer] = []
        self._tokens = Counter[str]()
        self._is_full = threading.Event()
        self._thread: threading.Thread | None = None

    def segments(self, known: Collection[str]) -> Iterator[tuple[str, Segment]]:
        """Yield the name and content of each segment but the known ones.

        Raises:
            UserError: one is damaged.
            StoreError: the store does not answer.
        """
        for info in list(self.folder.list()):
            content = None if info.name in known else (self.folder / info.name).read()
            if content is not None:
                yield info.name, self._parsed(info.name, content)

    def _parsed(self, name: str, content: bytes) -> Segment:
        with suppress(OSError, EOFError, ValueError, ValidationError):
            if name == _name(content):
                return Segment.parse(content)
        raise UserError(
            f"{self.folder / name} is damaged: delete it, and its answers are requested again"
        )

    def add(self, answer: StoredAnswer) -> None:
        """Store an answer within some seconds."""
        with self._lock:
            self._answers.append(answer)
            if len(self._answers) >= _LARGEST:
                self._is_full.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_segments, daemon=True)
                self._thread.start()

    def add_tokens(self, tokens: Counter[str]) -> None:
        """Store what was paid, with the next answers."""
        with self._lock:
            self._tokens.update(tokens)

    def _write_segments(self) -> None:
        while True:
            self._is_full.wait(SECONDS_BETWEEN_SEGMENTS)
            self._is_full.clear()
            # If it lasts, the run ends with the same error where answers are read or kept.
            with suppress(StoreError, EngineError, UserError):
                self.flush()

    def flush(self) -> None:
        """Write what has been added. Raises StoreError: nothing is lost, and may be flushed later."""
        with self._lock:
            segment = Segment(self._answers, self._tokens)
            self._answers = []
            self._tokens = Counter()
        try:
            self._write(segment)
        except Exception:
            with self._lock:
                self._answers = segment.answers + self._answers
                self._tokens.update(segment.tokens)
            raise

    def _write(self, segment: Segment) -> None:
        if segment.answers:
            content = segment.content()
            name = _name(content)
            self.note(name)
            (self.folder / name).put(content)

    def forget_refusals(self) -> None:
        """Replace segments that have unusable answers. Raises as `segments`."""
        for name, segment in self.segments(()):
            usable = [answer for answer in segment.answers if answer.usable]
            if len(usable) < len(segment.answers):
                self._write(Segment(usable, segment.tokens))
                (self.folder / name).unlink()


def _name(content: bytes) -> str:
    return sha256(content).hexdigest() + _SUFFIX
