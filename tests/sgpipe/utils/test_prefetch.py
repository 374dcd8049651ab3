"""Results that are computed before they are requested: the same, in the same order, and only a few
of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from sgpipe.utils.prefetch import prefetch, prefetch_generator
from tests.endpoint_server import wait_until

NUMBER = 30
PATIENCE = 10  # seconds


def later(number: int) -> int:
    time.sleep(0.002 * (number % 3))  # so that threads end in another order
    if number == 20:
        raise ValueError(str(number))
    return number * number


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_and_errors_come_in_order(threads: int) -> None:
    with prefetch(later, range(20), threads, 6) as results:
        assert list(results) == [number * number for number in range(20)]
    with prefetch(later, range(NUMBER), threads, 6) as results:
        assert [next(results) for _ in range(20)] == [number * number for number in range(20)]
        with pytest.raises(ValueError, match="20"):
            next(results)


@pytest.mark.parametrize(("threads", "limit"), [(0, 1), (2, 6)])
def test_only_a_few_items_are_read(threads: int, limit: int) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    with prefetch(later, items(), threads, limit) as results:
        assert next(results) == 0
        assert len(read) == limit
        assert next(results) == 1
        assert len(read) == limit + 1


def test_large_items_are_fewer() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    with prefetch(later, items(), 2, 6, size_of=lambda number: 1 + number, size_limit=4) as results:
        assert next(results) == 0
        assert read == [0, 1, 2]
        assert next(results) == 1
        assert read == [0, 1, 2]  # the sizes of 1 and 2 are still 5
        assert next(results) == 4
        assert read == [0, 1, 2, 3]


def test_closing_cancels_what_waits_and_does_not_wait_for_the_rest() -> None:
    begun = []
    go_on = threading.Event()
    ended = []

    def block(number: int) -> int:
        begun.append(number)
        if number:
            go_on.wait(PATIENCE)
            ended.append(number)
        return number

    def interrupt() -> None:
        with prefetch(block, range(NUMBER), 2, 8) as results:
            assert next(results) == 0
            wait_until(lambda: len(begun) == 3)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert ended == []
    go_on.set()
    wait_until(lambda: len(ended) == 2)
    assert begun == [0, 1, 2]


def test_results_of_a_generator_come_in_order_before_its_error() -> None:
    with prefetch_generator(later(number) for number in range(NUMBER)) as results:
        assert [next(results) for _ in range(20)] == [number * number for number in range(20)]
        with pytest.raises(ValueError, match="20"):
            next(results)
        assert list(results) == []
