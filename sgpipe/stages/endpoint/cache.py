"""The answers of served models, on disk: a run that is killed and started again pays for none of them twice."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from sgpipe.errors import EngineError, UserError
from sgpipe.files.model_cache import cache_folder
from sgpipe.stages.endpoint.messages import Choice
from sgpipe.storage.run_folder import REQUESTS

_PATIENCE = 60  # seconds to wait for other processes that are writing
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, choices TEXT NOT NULL, usable INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_rules (caption BLOB PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class CacheFolder:
    """The private folder of a run, and the machine that made this object, which is that of the run."""

    path: Path
    host: str = field(default_factory=socket.gethostname)

    @property
    def file(self) -> Path:
        """The cache; on other machines in the user's own folder: SQLite files cannot be shared over a network."""
        here = self.path.is_dir() and self.host == socket.gethostname()
        return (self.path if here else cache_folder()) / REQUESTS


class RequestCache:
    """Choices by request. Several threads and processes may use the file at once. The first answer creates it.

    A request is known by the hash of its body: model, messages with their images, sampling, seed and number of answers.
    Neither the address of the server nor the key is part of it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, body: bytes) -> list[Choice] | None:
        """Return the choices of a request, or None. Raises UserError if the file is damaged, or EngineError."""
        with self._opened(create=False) as connection:
            if connection is None:
                return None
            row = connection.execute("SELECT choices FROM answers WHERE request = ?", [_key(body)]).fetchone()
            return None if row is None else [Choice.from_json(each) for each in json.loads(row[0])]

    def put(self, body: bytes, choices: Sequence[Choice]) -> None:
        """Keep the choices of a request. Raises like `get`, and EngineError if the disk is full."""
        usable = any(choice.fault is None for choice in choices)
        row = (_key(body), json.dumps([choice.to_json() for choice in choices]), usable)
        self._insert("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row)

    def put_by_rules(self, caption: bytes) -> None:
        """Note that the rules parsed a caption because the model's answer was unusable. Raises like `put`."""
        self._insert("INSERT OR IGNORE INTO by_rules VALUES (?)", [_key(caption)])

    def count_by_rules(self) -> int:
        """Return the number of captions that the rules parsed. Raises like `get`."""
        with self._opened(create=False) as connection:
            return connection.execute("SELECT COUNT(*) FROM by_rules").fetchone()[0] if connection else 0

    def forget_refusals(self) -> None:
        """Forget what has only been refused so far, so that it is requested again. Raises like `put`."""
        with self._opened(create=False) as connection:
            if connection:
                connection.execute("DELETE FROM answers WHERE NOT usable")

    def _insert(self, statement: str, row: Sequence[object]) -> None:
        with self._opened(create=True) as connection:
            assert connection is not None
            connection.execute(statement, row)

    @contextmanager
    def _opened(self, create: bool) -> Iterator[sqlite3.Connection | None]:
        try:
            with self._lock:
                if self._connection is None and (create or self.file.exists()):
                    self._connection = _connect(self.file)
                yield self._connection
        except sqlite3.OperationalError as error:
            raise EngineError(f"the request cache {self.file} cannot be used: {error}") from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise UserError(f"the request cache {self.file} is damaged; delete it ({error})") from None


def _connect(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    # Without isolation level each statement is a transaction.
    connection = sqlite3.connect(file, _PATIENCE, isolation_level=None, check_same_thread=False)
    with suppress(sqlite3.OperationalError):  # some network folders cannot; the cache is slower there
        connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(_TABLES)
    return connection


def _key(content: bytes) -> bytes:
    return sha256(content).digest()
