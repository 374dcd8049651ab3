"""Answers of served models, kept on disk: a run that is killed and started again pays for none
twice.
"""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sgpipe.errors import EngineError, UserError
from sgpipe.files.model_cache import cache_folder
from sgpipe.stages.served.chat import Check, Choice
from sgpipe.storage.run_folder import REQUESTS

_PATIENCE = 60  # seconds to wait for other processes that are writing
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, choices TEXT NOT NULL, usable INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_rules (caption BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage (asked INTEGER, answered INTEGER);
"""
_CHOICES = TypeAdapter(list[Choice])


@dataclass(frozen=True)
class CacheFolder:
    """The private folder of a run, and the machine that made this object, which is that of the
    run.
    """

    path: Path
    host: str = field(default_factory=socket.gethostname)

    @property
    def file(self) -> Path:
        """The cache; on other machines in the user's own folder: SQLite files cannot be shared over
        a network.
        """
        is_local = self.path.is_dir() and self.host == socket.gethostname()
        return (self.path if is_local else cache_folder()) / REQUESTS


class RequestCache:
    """Choices by the hash of a request, which has neither the address of the server nor the key.

    Several threads and processes may use the file at once. The first answer creates it. Methods
    raise UserError if the file is damaged, EngineError if it cannot be used, such as on a full
    disk.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, body: bytes) -> list[Choice] | None:
        rows = self._execute(
            "SELECT choices FROM answers WHERE request = ?", [sha256(body).digest()]
        )
        try:
            return _CHOICES.validate_json(rows[0][0]) if rows else None
        except ValueError:
            raise UserError(f"the request cache {self.file} is damaged; delete it") from None

    def put(self, body: bytes, choices: Sequence[Choice], check: Check | None = None) -> None:
        usable = any(
            choice.fault is None and not (check and check(choice.text)) for choice in choices
        )
        row = (sha256(body).digest(), json.dumps(choices), usable)
        self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", row, create=True)

    def put_by_rules(self, caption: bytes) -> None:
        """Note that the rules parsed a caption because the model's answer was unusable."""
        self._execute(
            "INSERT OR IGNORE INTO by_rules VALUES (?)", [sha256(caption).digest()], create=True
        )

    def count_by_rules(self) -> int:
        return sum(number for (number,) in self._execute("SELECT COUNT(*) FROM by_rules"))

    def put_usage(self, completion: Mapping[str, Any]) -> None:
        """Note the tokens of a completion, if the server counts them."""
        usage = completion.get("usage")
        if isinstance(usage, Mapping):
            numbers = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
            row = [
                number if isinstance(number, int) and 0 <= number < 2**53 else 0
                for number in numbers
            ]
            self._execute("INSERT INTO usage VALUES (?, ?)", row, create=True)

    def tokens(self) -> int:
        return sum(
            number or 0 for (number,) in self._execute("SELECT SUM(asked + answered) FROM usage")
        )

    def forget_refusals(self) -> None:
        """Forget what was refused or answered unusably, so that it is requested again."""
        self._execute("DELETE FROM answers WHERE NOT usable")

    def _execute(
        self, statement: str, values: Sequence[object] = (), create: bool = False
    ) -> list[Any]:
        try:
            with self._lock:
                if self._connection is None:
                    if not (create or self.file.exists()):
                        return []
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                    # Without isolation level each statement is a transaction.
                    opened = sqlite3.connect(
                        self.file, _PATIENCE, isolation_level=None, check_same_thread=False
                    )
                    # Some network folders cannot; the cache is slower there.
                    with suppress(sqlite3.OperationalError):
                        opened.execute("PRAGMA journal_mode = WAL")
                    opened.execute("PRAGMA synchronous = NORMAL")
                    opened.executescript(_TABLES)
                    self._connection = opened
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.OperationalError as error:
            raise EngineError(f"the request cache {self.file} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the request cache {self.file} is damaged; delete it ({error})"
            ) from None
