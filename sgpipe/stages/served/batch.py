"""Requests in the form of OpenAI's Batch API, which `vllm run-batch` reads, too: they are written to
files in place of being sent.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import EngineError, UserError, add_filename, format_os_error

# of a file, as OpenAI allows
MOST_REQUESTS = 50_000
MOST_BYTES = 200_000_000
UNANSWERED = "unanswered"  # the kind of failure of an image whose requests have no answer yet
_URL = "/v1/chat/completions"
_LEDGER = "ledger.sqlite"
_PATIENCE = 60  # seconds to wait for other processes that are writing
_TABLES = """
CREATE TABLE requests (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE parts (
    number INTEGER PRIMARY KEY, model TEXT NOT NULL, requests INTEGER NOT NULL, size INTEGER NOT NULL
);
"""
_ADD_REQUEST = "INSERT OR IGNORE INTO requests VALUES (?)"
_OPEN_PART = "SELECT number FROM parts WHERE model = ? AND requests < ? AND size + ? <= ? LIMIT 1"
_ADD_PART = "INSERT INTO parts (model, requests, size) VALUES (?, 0, 0)"
_FILL_PART = "UPDATE parts SET requests = requests + 1, size = size + ? WHERE number = ?"
_PARTS = "SELECT number, model, requests, size FROM parts ORDER BY number"


class UnansweredError(EngineError):
    """No answer is known to a request, and none is sent."""


@dataclass(frozen=True)
class BatchPart:
    """A file of requests to one model."""

    file: Path
    model: str
    requests: int
    size: int


@dataclass(frozen=True)
class BatchSpool:
    """The files of a batch before they get their names; several processes may write them at once.

    Attributes:
        folder: is deleted with what is in it, unless `publish` is called.
        target: the name of the first file; the others get numbers.
    """

    folder: Path
    target: Path

    @classmethod
    def create(cls, folder: Path, target: Path) -> BatchSpool:
        """Return the spool in an empty folder of the same disk as `target`."""
        spool = cls(folder, target)
        with spool._ledger() as ledger:
            ledger.executescript(_TABLES)
        return spool

    def add(self, key: str, body: Mapping[str, object]) -> None:
        """Write a request, unless it has been written.

        Args:
            key: under which its answer will be kept.

        Raises:
            EngineError: the disk is full, or cannot be written.
        """
        request = {"custom_id": key, "method": "POST", "url": _URL, "body": body}
        line = json.dumps(request).encode() + b"\n"
        with self._ledger() as ledger:
            ledger.execute("BEGIN IMMEDIATE")
            if ledger.execute(_ADD_REQUEST, [key]).rowcount:
                number = self._part(ledger, str(body["model"]), len(line))
                with add_filename(self.target), self._file(number).open("ab") as file:
                    file.write(line)
            ledger.execute("COMMIT")

    def _part(self, ledger: sqlite3.Connection, model: str, size: int) -> int:
        """Return the number of a file with room for a request, which is counted there."""
        limits = (model, MOST_REQUESTS, size, MOST_BYTES)
        row = ledger.execute(_OPEN_PART, limits).fetchone()
        if row is None:
            row = (ledger.execute(_ADD_PART, [model]).lastrowid,)
        number = int(row[0])
        ledger.execute(_FILL_PART, [size, number])
        return number

    def publish(self) -> list[BatchPart]:
        """Give the files their names, the first one last: where it is, all are."""
        with self._ledger() as ledger:
            rows = ledger.execute(_PARTS).fetchall()
        parts = []
        for number, model, requests, size in rows:
            parts.append(BatchPart(part_name(self.target, number), model, requests, size))
        for number, part in reversed(list(enumerate(parts, 1))):
            os.replace(self._file(number), part.file)
        return parts

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.jsonl"

    @contextmanager
    def _ledger(self) -> Iterator[sqlite3.Connection]:
        """Open what tells which requests are in which file; nobody needs it after a crash."""
        try:
            with closing(
                sqlite3.connect(self.folder / _LEDGER, _PATIENCE, isolation_level=None)
            ) as ledger:
                ledger.execute("PRAGMA journal_mode = MEMORY")
                ledger.execute("PRAGMA synchronous = OFF")
                yield ledger
        except sqlite3.Error as error:
            raise EngineError(f"{self.target} cannot be written: {error}") from None
        except OSError as error:
            raise EngineError(format_os_error(error)) from None


@dataclass(frozen=True)
class BatchMode:
    """Of a command that sends no requests.

    Attributes:
        spool: gets requests without an answer; None: they are not written.
    """

    spool: BatchSpool | None = None

    def miss(self, key: str, body: Mapping[str, object]) -> UnansweredError:
        """Write a request that has no answer, and return the error to raise.

        Raises:
            EngineError: as `BatchSpool.add`.
        """
        if self.spool is not None:
            self.spool.add(key, body)
        return UnansweredError("a request has no answer yet")


def part_name(target: Path, number: int) -> Path:
    """Return the name of a file of a batch: `target`, then with the numbers 2, 3, …"""
    return target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")


def check_target(target: Path) -> None:
    """Raise UserError if a batch would replace another one."""
    for file in (target, part_name(target, 2)):
        if file.exists():
            raise UserError(f"{file} exists: choose another --batch-file, or delete it")
