"""One replica of a model: a server that is started again when it ends, or hangs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sgpipe.stages.served.engines.process import ServerProcess, answers

_FIRST_PAUSE = 1.0  # seconds before it is started again; then twice as long, and so on
_LONGEST_PAUSE = 60.0
_MOST_STARTS = 8  # in a row that end before the server answers
_CHECK_SECONDS = 30.0  # between questions to a server that answers
_HUNG_SECONDS = 300.0  # without an answer


class Replica:
    """A server that one thread looks after, by calling `look` again and again.

    Attributes:
        name: in messages, such as "vllm 1 of 2".
        url: of its server, the same after each start.
        is_ready: it answers.
        failure: why it has ended last, with the last line of its log; None: it never has.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        url: str,
        key: str,
        log: Path,
        ready_timeout: float,
        say: Callable[[str], None],
    ) -> None:
        """Start the server.

        Args:
            key: that it requires; "": none.
            ready_timeout: seconds after which a server that does not answer is ended.
            say: gets a line when it has ended, and when it answers again.
        """
        self.name = name
        self.url = url
        self.is_ready = False
        self.failure: str | None = None
        self.log = log
        self._command = command
        self._environment = environment
        self._key = key
        self._ready_timeout = ready_timeout
        self._say = say
        self._is_quiet = True  # as long as the run waits for first answers
        self._starts = 0
        self._next_start = 0.0
        self._process: ServerProcess | None = None
        self._start()

    @property
    def is_given_up(self) -> bool:
        """Whether it is not started again."""
        return self._process is None and self._starts >= _MOST_STARTS

    def look(self) -> None:
        """Start the server again if it has ended, and ask whether it answers."""
        now = time.monotonic()
        if self._process is None:
            if now >= self._next_start and not self.is_given_up:
                self._start()
            return
        exit_code = self._process.exit_code
        if exit_code is not None:
            self._ended(f"it ended with exit code {exit_code}")
        elif now >= self._next_check:
            self._check(now)

    def _start(self) -> None:
        self._starts += 1
        self._process = ServerProcess(self._command, self._environment, self.log)
        self._started = time.monotonic()
        self._answered = self._started
        self._next_check = self._started

    def _check(self, now: float) -> None:
        """Ask the server whether it answers; one that has not for too long is ended."""
        if answers(self.url, self._key):
            self._answered = now
            self._next_check = now + _CHECK_SECONDS
            self._starts = 0
            if not self.is_ready:
                self.is_ready = True
                if not self._is_quiet:
                    self._say(f"{self.name} answers")
            return
        limit = _HUNG_SECONDS if self.is_ready else self._ready_timeout
        if now - self._answered > limit:
            self._ended(f"it has not answered for {limit:,.0f} seconds")

    def _ended(self, reason: str) -> None:
        """End what is left of the server, note why, and when to start it again."""
        assert self._process is not None
        line = self._process.last_line()
        self._process.end(patience=0)
        self._process = None
        self.failure = f"{reason}: {line}"
        self.is_ready = False
        pause = min(_FIRST_PAUSE * 2**self._starts, _LONGEST_PAUSE)
        self._next_start = time.monotonic() + pause
        if not self._is_quiet:
            self._tell_failure()

    def speak(self) -> None:
        """Say why it has ended last, if it has, and from now on what happens."""
        self._is_quiet = False
        self._tell_failure()

    def _tell_failure(self) -> None:
        if self.failure is None:
            return
        then = "it is started again"
        if self.is_given_up:
            then = f"it is not started again after {self._starts} attempts"
        self._say(f"NOTE: {self.name}: {self.failure}; {then} (log: {self.log})")

    def ask_to_end(self) -> None:
        """Begin to end the server."""
        if self._process is not None:
            self._process.ask_to_end()

    def end(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.end()
            self._process = None
