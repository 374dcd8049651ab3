"""What an exception in a stage means: an error row, the end of the run, or that of the process."""

from __future__ import annotations

import errno
import re
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from sgpipe.errors import (
    CodeError,
    ComputationError,
    EngineError,
    ImageError,
    StoreError,
    UserError,
    first_line,
)

IN_A_ROW = 20  # images whose failures end a run at once
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
# After these a process computes nothing more on its GPU.
_GPU_FAILURE = re.compile(r"(CUDA|HIP) error|CUBLAS_STATUS|CUDNN_STATUS|device-side assert")
_FULL_MEMORY = re.compile(r"out of memory|_ALLOC_FAILED")


@dataclass(frozen=True)
class ImageLimits:
    """What images may cost.

    Attributes:
        max_errors: the share of images that may fail; 1: all.
        seconds: that a stage may take for each image; None: any number.
    """

    max_errors: float = 1.0
    seconds: float | None = None


@dataclass(frozen=True)
class Failure:
    """An image on which a stage failed.

    Attributes:
        file_name: of the image.
        stage: its name; "worker" if the process crashed.
        kind: the class of the error.
        reason: in one line, as in the error row.
        traceback: of many lines; "": there is none.
    """

    file_name: str
    stage: str
    kind: str
    reason: str
    traceback: str = ""

    @classmethod
    def of_error(cls, file_name: str, stage: str, error: Exception) -> Failure:
        """Return what an exception says of an image."""
        kind = type(cause_of(error)).__name__
        is_for_users = isinstance(error, UserError)
        reason = str(error) if is_for_users else f"{kind}: {first_line(error)}"
        lines = traceback.format_exception(error)
        return cls(file_name, stage, kind, reason, "".join(lines))


@dataclass
class FailureSummary:
    """How many images failed, and why most of them did."""

    number: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            kind = (failure.stage, failure.kind)
            self.number += 1
            self.kinds[kind] += 1
            self.reasons.setdefault(kind, failure.reason)

    def __str__(self) -> str:
        """Such as "all in tag: ValueError: a bug"."""
        [(kind, number)] = self.kinds.most_common(1)
        share = "all" if number == self.number else f"{number:,}"
        return f"{share} in {kind[0]}: {self.reasons[kind]}"


class FailuresInARowError(EngineError):
    """Every image fails, so the run ends."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        self.failures = failures
        summary = FailureSummary()
        summary.add(failures)
        super().__init__(f"{len(failures)} images in a row failed, {summary}")

    def __reduce__(self) -> tuple[type[FailuresInARowError], tuple[Sequence[Failure]]]:
        return FailuresInARowError, (self.failures,)


class FailureStreak:
    """The failures since the last image without one.

    Attributes:
        limits: without a limit of errors, no streak ends a run.
    """

    def __init__(self, limits: ImageLimits) -> None:
        self.limits = limits
        self._failures: list[Failure] = []

    def add(self, failure: Failure) -> None:
        """Count a failure.

        Raises:
            FailuresInARowError: these are too many.
        """
        if self.limits.max_errors == 1:
            return
        self._failures.append(failure)
        if len(self._failures) == IN_A_ROW:
            raise FailuresInARowError(self._failures)

    def end(self) -> None:
        self._failures = []


def cause_of(error: Exception) -> BaseException:
    """Return the exception, or that which code of the user's own raised."""
    own = error.__cause__ if isinstance(error, CodeError) else None
    return own or error


def concerns_one_image(error: BaseException) -> bool:
    """Return whether other images may do better.

    They do not if the user has to change something, a store or a server does not answer, or the
    machine has no room.
    """
    if isinstance(error, ComputationError | ImageError):
        return True
    if isinstance(error, UserError | EngineError | StoreError):
        return False
    return not (isinstance(error, OSError) and error.errno in _NO_ROOM)


def is_gpu_failure(error: BaseException) -> bool:
    """Return whether a GPU is out of order for this process; a full memory is not."""
    text = str(error)
    is_failure = isinstance(error, RuntimeError) and _GPU_FAILURE.search(text) is not None
    return is_failure and _FULL_MEMORY.search(text) is None
