"""Keeping what a server shows up to date: other servers judge the same run, and other processes add shards to it."""

from __future__ import annotations

import threading
import time

from sgpipe.errors import UserError, refusal
from sgpipe.storage.judgements import JudgementLog
from sgpipe.view.index import Index

_SECONDS_LOCAL, _SECONDS_STORE = 2.0, 30.0  # between two looks for new shards, at least
_AFTER_FAILURE = 10  # times as long


class Freshness:
    """The links from a run's files to its index; threads may share it.

    Attributes:
        failure: why the last look for new shards failed, in one line; empty: it did not.
    """

    def __init__(self, index: Index, judgements: JudgementLog) -> None:
        self.failure = ""
        self._index = index
        self._judgements = judgements
        self._indexed_judgements = -1
        self._judging = threading.Lock()
        self._looking = threading.Lock()
        self._looked = time.monotonic()
        self._seconds = _SECONDS_STORE if "://" in str(index.root) else _SECONDS_LOCAL

    def update_judgements(self) -> None:
        """Let searches know of all judgements that are in the file by now. Raises UserError: it cannot be read."""
        with self._judging:
            self._judgements.reload()
            if self._judgements.version == self._indexed_judgements:
                return
            self._indexed_judgements = self._judgements.version
            self._index.set_judged([(*state.key, state.state) for state in self._judgements.current()])

    def look_for_shards(self) -> None:
        """Index what was committed since the last look, in the background."""
        seconds = self._seconds * (_AFTER_FAILURE if self.failure else 1)
        if time.monotonic() - self._looked >= seconds and self._looking.acquire(blocking=False):
            threading.Thread(target=self._refresh, daemon=True).start()

    def _refresh(self) -> None:
        try:
            self._index.refresh()
            self.failure = ""
        except UserError as error:
            self.failure = str(error)
        except OSError as error:
            self.failure = refusal(error)
        finally:
            self._looked = time.monotonic()
            self._looking.release()
