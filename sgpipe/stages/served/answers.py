"""Answers of served models, kept on disk: a run that is killed and started again pays for none
twice.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sgpipe.errors import EngineError, UserError
from sgpipe.files.locations import StorePath
from sgpipe.files.model_cache import cache_folder
from sgpipe.stages.served.batch import BatchMode
from sgpipe.stages.served.batch_answers import ANSWERED, BatchAnswer
from sgpipe.stages.served.chat import Check, Choice
from sgpipe.stages.served.segments import AnswerStore, Segment, StoredAnswer
from sgpipe.storage.run_folder import ANSWERS, REQUESTS
from sgpipe.storage.tokens import TOKENS, Spending

_PATIENCE = 60  # seconds to wait for other processes that are writing
_TABLES = """
CREATE TABLE IF NOT EXISTS answers (request BLOB PRIMARY KEY, choices TEXT NOT NULL, usable INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS segments (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS by_rules (caption BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spending (
    command TEXT PRIMARY KEY,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    cost REAL NOT NULL DEFAULT 0,
    dearest REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS under_way (
    process INTEGER NOT NULL,
    command TEXT NOT NULL,
    requests INTEGER NOT NULL,
    PRIMARY KEY (process, command)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS batch_answers (
    request BLOB PRIMARY KEY,
    status INTEGER NOT NULL,
    content TEXT NOT NULL,
    command TEXT NOT NULL,
    used INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
_ADD_ANSWER = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)"
# Answers that are kept are not replaced; a refusal is, by an answer.
_ADD_BATCH_ANSWER = f"""
INSERT INTO batch_answers (request, status, content, command)
    SELECT :request, :status, :content, :command
    WHERE NOT EXISTS (SELECT 1 FROM answers WHERE request = :request)
    ON CONFLICT (request) DO UPDATE SET
        status = excluded.status, content = excluded.content, command = excluded.command, used = 0
        WHERE status != {ANSWERED} AND excluded.status = {ANSWERED}
"""
_BATCH_ANSWER = "SELECT status, content FROM batch_answers WHERE request = ?"
_USE_BATCH_ANSWER = "UPDATE batch_answers SET used = 1 WHERE request = ? AND NOT used RETURNING 1"
_UNUSED = "SELECT count(*) FROM batch_answers WHERE command = ? AND NOT used"
_NOTE_SEGMENT = "INSERT OR IGNORE INTO segments VALUES (?)"
_ADD_SPENDING = """
INSERT INTO spending VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (command) DO UPDATE SET
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cost = cost + excluded.cost,
    dearest = max(dearest, excluded.dearest)
"""
# An earlier command tells what a request may cost.
_BEGIN_SPENDING = """
INSERT OR IGNORE INTO spending (command, dearest)
    SELECT ?, coalesce(max(dearest), 0) FROM spending
"""
# Each request under way may cost as much as the dearest did; until one has an answer, none is known.
_RESERVE = """
INSERT INTO under_way SELECT :process, :command, 1 FROM spending, (
        SELECT coalesce(sum(requests), 0) AS requests FROM under_way WHERE command = :command
    ) AS reserved
    WHERE command = :command AND (dearest > 0 OR reserved.requests = 0)
        AND cost + (reserved.requests + 1) * dearest < :left
    ON CONFLICT (process, command) DO UPDATE SET requests = requests + 1
    RETURNING requests
"""
_END_REQUEST = "UPDATE under_way SET requests = requests - 1 WHERE process = ? AND command = ?"
_UNDER_WAY = "SELECT process, requests FROM under_way WHERE command = ?"
_CHOICES = TypeAdapter(list[Choice])


@dataclass(frozen=True)
class CacheFolder:
    """Where the answers of a run are kept.

    Attributes:
        path: the private folder of the run.
        host: the machine that made this object, which is that of the run.
        spending: what requests may cost.
        tokens: of each answer to this process since they were taken last.
        store: the store of the run; None: it is in a folder.
        batch: of a command that sends no requests; None: they are sent.
    """

    path: Path
    host: str = field(default_factory=socket.gethostname)
    spending: Spending = field(default_factory=Spending)
    tokens: deque[Counter[str]] = field(default_factory=deque, compare=False)
    store: StorePath | None = None
    batch: BatchMode | None = None

    @property
    def file(self) -> Path:
        """The cache; on other machines in the user's own folder: SQLite files cannot be shared over
        a network.
        """
        is_local = self.path.is_dir() and self.host == socket.gethostname()
        return (self.path if is_local else cache_folder()) / REQUESTS

    def open(self) -> RequestCache:
        """Return the cache."""
        return RequestCache(self.file, self.spending, self.tokens, self.store)

    def take_tokens(self) -> Counter[str]:
        """Return the tokens that this process has paid for since the last call."""
        total = Counter[str]()
        with suppress(IndexError):
            while True:  # other threads add and take tokens meanwhile
                total.update(self.tokens.popleft())
        return total


class RequestCache:
    """Choices by the hash of a request, which has neither the address of the server nor the key.

    Several threads and processes may use the file at once. The first answer creates it. Methods
    raise UserError if the file is damaged, EngineError if it cannot be used, such as on a full
    disk.
    """

    def __init__(
        self,
        file: Path,
        spending: Spending | None = None,
        tokens: deque[Counter[str]] | None = None,
        store: StorePath | None = None,
    ) -> None:
        """Opens nothing.

        Args:
            file: of SQLite.
            spending: what requests may cost; None: it does not matter.
            tokens: where those of each answer are added.
            store: of the run, which has the answers that came to other machines; None: the run is
                in a folder.
        """
        self.file = file
        self.spending = spending or Spending()
        self._tokens = deque[Counter[str]]() if tokens is None else tokens
        self._stored = AnswerStore(store / ANSWERS, self._note_segment) if store else None
        self._is_complete = store is None
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def get(self, body: bytes) -> list[Choice] | None:
        """Return the answer to a request, or None if it has not been answered.

        Raises:
            StoreError: the answers of other machines cannot be read.
        """
        self._complete()
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
        self._execute(_ADD_ANSWER, row, create=True)
        if self._stored:
            request, text, _ = row
            answer = StoredAnswer(request=request.hex(), choices=text, usable=usable)
            self._stored.add(answer)

    def _complete(self) -> None:
        """Take in, once, the answers that came to other machines."""
        if self._stored is None or self._is_complete:
            return
        known = {name for (name,) in self._execute("SELECT name FROM segments", create=True)}
        for name, segment in self._stored.segments(known):
            self._take_in(name, segment)
        self._is_complete = True

    def _take_in(self, name: str, segment: Segment) -> None:
        """Add the answers and tokens of a segment, all or none."""
        rows = [
            (bytes.fromhex(answer.request), answer.choices, answer.usable)
            for answer in segment.answers
        ]
        counts = [segment.tokens[token] for token in TOKENS]
        with self._transaction() as connection:
            connection.executemany(_ADD_ANSWER, rows)
            connection.execute(_ADD_SPENDING, [name, *counts, 0, 0])
            connection.execute(_NOTE_SEGMENT, [name])

    def _note_segment(self, name: str) -> None:
        """Note that this file has the answers and tokens of a segment."""
        self._execute(_NOTE_SEGMENT, [name], create=True)

    def flush(self) -> None:
        """Write into the store what is not in it. Raises StoreError."""
        if self._stored:
            self._stored.flush()

    def add_batch(self, answers: Iterable[BatchAnswer]) -> int:
        """Keep the answers of a batch until they are asked for, all or none; returns how many are
        new.
        """
        self._complete()
        new = 0
        with self._transaction() as connection:
            for answer in answers:
                values = {
                    "request": bytes.fromhex(answer.key),
                    "status": answer.status,
                    "content": answer.content,
                    "command": self.spending.command,
                }
                new += connection.execute(_ADD_BATCH_ANSWER, values).rowcount
        return new

    def batch_answer(self, body: bytes) -> BatchAnswer | None:
        """Return what a batch says of a request; None: nothing."""
        request = sha256(body)
        rows = self._execute(_BATCH_ANSWER, [request.digest()])
        return BatchAnswer(request.hexdigest(), *rows[0]) if rows else None

    def use_batch_answer(self, body: bytes) -> bool:
        """Note that a request got its answer from a batch; returns whether it is the first one."""
        return bool(self._execute(_USE_BATCH_ANSWER, [sha256(body).digest()]))

    def count_unused(self) -> int:
        """Return how many answers of batches of this command no request has got."""
        return sum(number for (number,) in self._execute(_UNUSED, [self.spending.command]))

    def forget_batch(self) -> None:
        """Forget the answers of batches of this command."""
        self._execute("DELETE FROM batch_answers WHERE command = ?", [self.spending.command])

    def put_by_rules(self, caption: bytes) -> None:
        """Note that the rules parsed a caption because the model's answer was unusable."""
        self._execute(
            "INSERT OR IGNORE INTO by_rules VALUES (?)", [sha256(caption).digest()], create=True
        )

    def count_by_rules(self) -> int:
        return sum(number for (number,) in self._execute("SELECT COUNT(*) FROM by_rules"))

    def put_tokens(self, tokens: Counter[str]) -> None:
        """Note the tokens of an answer, and what they cost."""
        self._tokens.append(tokens)
        if self._stored:
            self._stored.add_tokens(tokens)
        cost = self.spending.cost(tokens)
        counts = [tokens[name] for name in TOKENS]
        self._execute(_ADD_SPENDING, [self.spending.command, *counts, cost, cost], create=True)

    def tokens(self) -> Counter[str]:
        """Return the tokens of all answers that came to this machine, or to the store."""
        self._complete()
        columns = ", ".join(f"coalesce(sum({name}), 0)" for name in TOKENS)
        [sums] = self._execute(f"SELECT {columns} FROM spending") or [(0, 0, 0)]
        return Counter(dict(zip(TOKENS, sums, strict=True)))

    def reserve_request(self) -> bool:
        """Return whether one more request may be sent, which then counts as under way."""
        command = self.spending.command
        self._execute(_BEGIN_SPENDING, [command], create=True)
        values = {"process": os.getpid(), "command": command, "left": self.spending.left}
        return bool(self._execute(_RESERVE, values))

    def end_request(self) -> None:
        """A request that was reserved is no longer under way."""
        self._execute(_END_REQUEST, [os.getpid(), self.spending.command])

    def requests_under_way(self) -> int:
        """Return how many requests of this command the processes of this machine have under way;
        those of processes that have crashed are forgotten.
        """
        requests = 0
        for process, number in self._execute(_UNDER_WAY, [self.spending.command]):
            if _is_running(process):
                requests += number
            else:
                self._execute("DELETE FROM under_way WHERE process = ?", [process])
        return requests

    def cost(self) -> float:
        """Return what the run has cost, as far as this machine knows."""
        statement = "SELECT cost FROM spending WHERE command = ?"
        costs = self._execute(statement, [self.spending.command])
        return self.spending.paid_before + sum(cost for (cost,) in costs)

    def forget_refusals(self) -> None:
        """Forget what was refused or answered unusably, so that it is requested again."""
        self._complete()
        if self._stored:
            self._stored.forget_refusals()
        self._execute("DELETE FROM answers WHERE NOT usable")
        self._execute("DELETE FROM batch_answers WHERE used")

    def _execute(
        self,
        statement: str,
        values: Sequence[object] | Mapping[str, object] = (),
        create: bool = False,
    ) -> list[Any]:
        with self._opened(create) as connection:
            return connection.execute(statement, values).fetchall() if connection else []

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commit all that the body of a `with` statement executes, or nothing if it fails."""
        with self._opened(create=True) as connection:
            assert connection is not None
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _opened(self, create: bool) -> Iterator[sqlite3.Connection | None]:
        """Yield the connection; None: there is no file, and it is not to be created."""
        try:
            with self._lock:
                if self._connection is None and (create or self.file.exists()):
                    self._connection = self._connect()
                yield self._connection
        except sqlite3.OperationalError as error:
            raise EngineError(f"the request cache {self.file} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"the request cache {self.file} is damaged; delete it ({error})"
            ) from None

    def _connect(self) -> sqlite3.Connection:
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
        return opened


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True
