"""Which errors a restart may mend, and how often a training restarts."""

import errno
import os

import pytest

from sgpipe.errors import EngineError, ImageError, StoreError, UnavailableError, UserError
from sgpipe.files.roots import image_error
from sgpipe.files.stores import AccessError
from sgpipe.training.restarts import is_refusal, run_with_restarts
from tests.sgpipe.training.trainings import QUIET


def system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "photo.jpg")


@pytest.mark.parametrize(
    ("error", "is_refused"),
    [
        (system_error(errno.EIO), False),
        (system_error(errno.ESTALE), False),
        (StoreError("s3://bucket does not answer"), False),
        (TimeoutError("timed out"), False),
        (UnavailableError("shard 1.parquet cannot be read"), False),
        (image_error(system_error(errno.ETIMEDOUT), "photo.jpg"), False),
        (image_error(system_error(errno.ENOENT), "photo.jpg"), True),
        (image_error(system_error(errno.ENOSPC), "photo.jpg"), True),
        (ImageError("photo.jpg is broken"), True),
        (system_error(errno.ENOSPC), True),
        (system_error(errno.EACCES), True),
        (system_error(errno.ENOENT), True),
        (AccessError("s3://bucket refuses the keys"), True),
        (UserError("no such folder"), True),
        (EngineError("the work could not be finished"), True),
    ],
    ids=str,
)
def test_what_may_not_come_again_is_no_refusal(error: Exception, is_refused: bool) -> None:
    assert is_refusal(error) == is_refused


class Failing:
    """A training that fails some times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error = error
        self.times = times
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error


def test_a_training_restarts_until_it_succeeds() -> None:
    run = Failing(system_error(errno.EIO), times=2)
    run_with_restarts(run, 2, 0, QUIET)
    assert run.calls == 3


def test_the_last_error_is_raised_with_the_number_of_restarts() -> None:
    run = Failing(system_error(errno.EIO), times=3)
    with pytest.raises(EngineError, match=r"Input/output error: photo.jpg, also after 2 restarts"):
        run_with_restarts(run, 2, 0, QUIET)
    without = Failing(StoreError("s3://bucket does not answer"), times=1)
    with pytest.raises(EngineError, match=r"^s3://bucket does not answer$"):
        run_with_restarts(without, 0, 0, QUIET)


def test_a_refusal_does_not_restart() -> None:
    run = Failing(system_error(errno.ENOSPC), times=1)
    with pytest.raises(OSError, match="No space left"):
        run_with_restarts(run, 3, 0, QUIET)
    assert run.calls == 1
