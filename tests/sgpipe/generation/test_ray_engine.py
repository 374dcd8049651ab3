"""Backpressure: how many units the engine admits."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sgpipe.generation.ray_engine import UnitLimit


def run(scenario: Coroutine[Any, Any, list[str]]) -> list[str]:
    """In a thread of its own: tests with a browser leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scenario).result()


async def settled() -> None:
    """Let every task run until it waits: turns of the loop, not seconds, so that a slow machine changes nothing."""
    for _ in range(100):
        await asyncio.sleep(0)


async def ask(limit: UnitLimit, *units: str) -> dict[str, asyncio.Task[None]]:
    tasks = {unit: asyncio.create_task(limit.enter(unit)) for unit in units}
    await settled()
    return tasks


def done(tasks: dict[str, asyncio.Task[None]]) -> list[str]:
    return [unit for unit, task in tasks.items() if task.done()]


async def admitted(limit: UnitLimit, *units: str) -> list[str]:
    """Those of the units, all of which ask at once, that are admitted without any leaving."""
    return done(await ask(limit, *units))


def test_no_more_units_than_the_limit_are_admitted():
    assert run(admitted(UnitLimit(2), "a", "b", "c", "d")) == ["a", "b"]


def test_a_unit_that_comes_again_is_already_admitted():
    assert run(admitted(UnitLimit(2), "a", "b", "c", "a", "b")) == ["a", "b"]


def test_one_that_leaves_makes_room_for_one():
    async def scenario() -> list[str]:
        limit = UnitLimit(2)
        tasks = await ask(limit, "a", "b", "c", "d")
        await limit.leave("a")
        await limit.leave("never seen")
        await settled()
        return done(tasks)

    assert run(scenario()) == ["a", "b", "c"]


def test_no_unit_waits_for_a_unit_that_left_before_it_was_counted():
    async def scenario() -> list[str]:
        limit = UnitLimit(1)
        await limit.leave("a")
        return await admitted(limit, "b", "c")

    assert run(scenario()) == ["b"]
