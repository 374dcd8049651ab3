"""The answers that were paid for, on disk: a run that is killed and started again pays for none of them twice."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from sgpipe.errors import EngineError, UserError
from sgpipe.files.model_cache import cache_folder
from sgpipe.stages.endpoint.answers import Choice
from sgpipe.storage.run_folder import REQUESTS
from sgpipe.utils.locking import was_locked_here

_LOCK = "lock"  # of a run
_PATIENCE = 60  # seconds to wait for other processes that are writing
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, choices TEXT NOT NULL, usable INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_rules (caption BLOB PRIMARY KEY) WITHOUT ROWID;
"""


def cache_file(folder: Path) -> Path:
    """The file of the cache in the private folder of a run, or, for a worker on another machine than the run's, in the
    user's own: SQLite files cannot be shared over a network.
    """
    lock = folder / _LOCK
    here = folder.is_dir() and (not lock.exists() or was_locked_here(lock))
    return (folder if here else cache_folder()) / REQUESTS


class RequestCache:
    """Choices by request. Several threads and processes may use the file at once. It is made by the first answer.

    A request is known by the hash of its body: model, messages with their images, sampling, seed and number of answers.
    Neither the address of the server nor the key is part of it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, body: bytes) -> list[Choice] | None:
        """The choices of a request, or None. Raises UserError: the file is damaged; EngineError: it cannot be read."""
        with self._lock, self._reading():
            if (connection := self._open(create=False)) is None:
                return None
            row = connection.execute("SELECT choices FROM answers WHERE request = ?", [_key(body)]).fetchone()
            return None if row is None else [Choice.from_json(each) for each in json.loads(row[0])]

    def put(self, body: bytes, choices: Sequence[Choice]) -> None:
        """Keep the choices of a request. Raises as `get`, and EngineError: the disk is full."""
        usable = any(choice.fault is None for choice in choices)
        row = (_key(body), json.dumps([choice.to_json() for choice in choices]), usable)
        self._insert("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row)

    def put_by_rules(self, caption: bytes) -> None:
        """Keep that the rules parsed a caption, because the answer about it could not be used. Raises as `put`."""
        self._insert("INSERT OR IGNORE INTO by_rules VALUES (?)", [_key(caption)])

    def count_by_rules(self) -> int:
        """The number of captions that the rules parsed. Raises as `get`."""
        with self._lock, self._reading():
            connection = self._open(create=False)
            return connection.execute("SELECT COUNT(*) FROM by_rules").fetchone()[0] if connection else 0

    def forget_refusals(self) -> None:
        """Ask again what has only been refused so far. Raises as `put`."""
        with self._lock, self._reading():
            if connection := self._open(create=False):
                connection.execute("DELETE FROM answers WHERE NOT usable")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _insert(self, statement: str, row: Sequence[object]) -> None:
        with self._lock, self._reading():
            connection = self._open(create=True)
            assert connection is not None
            connection.execute(statement, row)

    def _open(self, create: bool) -> sqlite3.Connection | None:
        if self._connection is None and (create or self.file.exists()):
            if create:
                self.file.parent.mkdir(parents=True, exist_ok=True)
            # Without isolation level each statement is a transaction of its own.
            connection = sqlite3.connect(self.file, _PATIENCE, isolation_level=None, check_same_thread=False)
            with suppress(sqlite3.OperationalError):  # some network folders cannot; the cache is slower there
                connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_TABLES)
            self._connection = connection
        return self._connection

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise EngineError(f"the request cache {self.file} cannot be used: {error}") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise UserError(f"the request cache {self.file} is damaged; delete it ({error})") from None


def _key(content: bytes) -> bytes:
    return sha256(content).digest()
