"""The number of requests under way finds what the servers bear, and the oldest stream is first."""

from __future__ import annotations

import asyncio
import random

import pytest

from sgpipe.stages.served.slots import Slots
from tests.sgpipe.stages.served import virtual_time

SECONDS = 2.0  # the mean latency of a server that is not full


class Fleet:
    """Servers that answer `capacity` requests at once; more wait, or are refused.

    Attributes:
        busy: seconds of work, of all requests.
    """

    def __init__(self, capacity: int, seed: int, *, refuses: bool = False) -> None:
        self.capacity = capacity
        self.refuses = refuses
        self.busy = 0.0
        self.at_once = 0
        self._places = asyncio.Semaphore(capacity)
        self._noise = random.Random(seed)

    async def answer(self) -> bool:
        """Return whether it answers; if not, it refuses at once."""
        if self.refuses and self._places.locked():
            return False
        async with self._places:
            self.at_once += 1
            seconds = SECONDS * self._noise.lognormvariate(-0.125, 0.5)
            self.busy += seconds
            await asyncio.sleep(seconds)
            self.at_once -= 1
            return True


async def use(fleet: Fleet, slots: Slots, requests: int) -> float:
    """Send all requests; return which share of the capacity they used."""

    async def send() -> None:
        async with slots.place(0):
            while True:
                began = virtual_time.now()
                if await fleet.answer():
                    slots.answered(began)
                    return
                slots.refused(began)
                await asyncio.sleep(1.0)

    await asyncio.gather(*(send() for _ in range(requests)))
    return fleet.busy / (fleet.capacity * virtual_time.now())


@pytest.mark.slow
@pytest.mark.parametrize("capacity", [16, 100, 256])
@pytest.mark.parametrize("seed", range(3))
def test_servers_are_kept_busy(capacity: int, seed: int) -> None:
    async def share() -> float:
        return await use(Fleet(capacity, seed), Slots(512, virtual_time.now), 80 * capacity)

    assert virtual_time.run(share()) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_servers_that_refuse_are_kept_busy_and_asked_less(seed: int) -> None:
    async def share() -> tuple[float, int]:
        slots = Slots(1024, virtual_time.now)
        used = await use(Fleet(64, seed, refuses=True), slots, 6000)
        return used, slots.limit

    used, limit = virtual_time.run(share())
    assert used > 0.7
    assert limit < 200


def test_servers_that_become_slow_get_fewer_requests() -> None:
    async def limits() -> tuple[int, int]:
        slots = Slots(256, virtual_time.now)
        fleet = Fleet(1000, seed=0)
        await use(fleet, slots, 6000)
        before = slots.limit
        fleet._places = asyncio.Semaphore(8)
        await use(fleet, slots, 600)
        return before, slots.limit

    before, after = virtual_time.run(limits())
    assert before == 256
    assert after < 0.6 * before


def test_few_requests_change_nothing() -> None:
    async def limit() -> int:
        slots = Slots(256, virtual_time.now)
        for _ in range(100):
            await use(Fleet(8, seed=0), slots, 4)
        return slots.limit

    assert virtual_time.run(limit()) == 64


def test_the_oldest_stream_is_first_and_a_cancelled_one_takes_no_place() -> None:
    async def order() -> list[int]:
        slots = Slots(1, virtual_time.now)
        served: list[int] = []

        async def send(stream: int) -> None:
            async with slots.place(stream):
                served.append(stream)
                await asyncio.sleep(1)

        tasks = [asyncio.create_task(send(stream)) for stream in (9, 3, 5, 1, 3)]
        await asyncio.sleep(0.5)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.under_way == 0
        return served

    assert virtual_time.run(order()) == [9, 1, 3, 3]
