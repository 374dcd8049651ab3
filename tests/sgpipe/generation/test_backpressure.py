"""Backpressure: how many units are in progress."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sgpipe.generation.backpressure import UnitLimit


def run(scenario: Coroutine[Any, Any, list[str]]) -> list[str]:
    """In a thread of its own: tests with a browser leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scenario).result()


async def admitted(limit: UnitLimit, *units: str) -> list[str]:
    """Those of the units, all of which ask at once, that are admitted without any leaving."""
    asking = {unit: asyncio.create_task(limit.enter(unit)) for unit in units}
    await asyncio.sleep(0.01)
    return [unit for unit, task in asking.items() if task.done()]


def test_no_more_units_than_the_limit_are_admitted():
    assert run(admitted(UnitLimit(2), "a", "b", "c", "d")) == ["a", "b"]


def test_a_unit_that_comes_again_is_already_admitted():
    assert run(admitted(UnitLimit(2), "a", "b", "c", "a", "b")) == ["a", "b"]


def test_one_that_leaves_makes_room_for_one():
    async def scenario() -> list[str]:
        limit = UnitLimit(2)
        waiting = asyncio.create_task(admitted(limit, "a", "b", "c", "d"))
        await asyncio.sleep(0.001)
        await limit.leave("a")
        await limit.leave("never seen")
        return await waiting

    assert run(scenario()) == ["a", "b", "c"]


def test_no_unit_waits_for_a_unit_that_left_before_it_was_counted():
    async def scenario() -> list[str]:
        limit = UnitLimit(1)
        await limit.leave("a")
        return await admitted(limit, "b", "c")

    assert run(scenario()) == ["b"]
