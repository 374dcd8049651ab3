"""Results computed in threads before they are requested."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sgpipe.utils.prefetch import prefetch

NUMBER = 30


def later(number: int) -> int:
    time.sleep(0.002 * (number % 3))  # so that threads end in another order
    if number == 20:
        raise ValueError(str(number))
    return number * number


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_results_and_errors_come_in_order(threads: int) -> None:
    with prefetch(later, range(20), threads, 6) as results:
        assert list(results) == [number * number for number in range(20)]
    with prefetch(later, range(NUMBER), threads, 6) as results:
        assert [next(results) for _ in range(20)] == [number * number for number in range(20)]
        with pytest.raises(ValueError, match="20"):
            next(results)


@pytest.mark.parametrize(("threads", "most"), [(0, 1), (2, 6)])
def test_only_a_few_items_are_read(threads: int, most: int) -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            read.append(number)
            yield number

    with prefetch(later, items(), threads, most) as results:
        assert next(results) == 0
        assert len(read) == most
        assert next(results) == 1
        assert len(read) == most + 1
