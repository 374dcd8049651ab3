import threading
import time

import pytest

from sgpipe.training.data.prefetcher import Prefetcher


def numbers(made: list[int], closed: threading.Event | None = None, fail_at: int | None = None):
    try:
        for number in range(100):
            if number == fail_at:
                raise ValueError("five")
            made.append(number)
            yield number
    finally:
        if closed is not None:
            closed.set()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


def test_results_come_in_order_and_end():
    with Prefetcher(numbers([])) as results:
        assert list(results) == list(range(100))
        assert list(results) == []


def test_at_most_the_room_is_prefetched():
    made: list[int] = []
    with Prefetcher(numbers(made), room=3) as results:
        wait_for(lambda: len(made) == 3)
        time.sleep(0.05)
        assert len(made) == 3
        next(results)
        wait_for(lambda: len(made) == 4)


def test_an_error_comes_after_the_results_before_it():
    with Prefetcher(numbers([], fail_at=5)) as results:
        assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
        for _ in range(2):
            with pytest.raises(ValueError, match="five"):
                next(results)


@pytest.mark.parametrize("taken", [0, 4])
def test_closing_ends_the_generator_and_its_thread(taken):
    before, closed = threading.active_count(), threading.Event()
    with Prefetcher(numbers([], closed)) as results:
        assert [next(results) for _ in range(taken)] == list(range(taken))
        wait_for(lambda: threading.active_count() == before + 1)
    assert threading.active_count() == before
    assert closed.is_set() or taken == 0
    assert list(results) == []


def test_waiting_times_are_added_up(monkeypatch):
    ticks = iter([0.0, 5.0, 6.0, 8.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    with Prefetcher(numbers([])) as results:
        next(results)
        assert results.waited == 5
        next(results)
        assert results.waited == 7
