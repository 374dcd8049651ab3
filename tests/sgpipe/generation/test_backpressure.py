import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sgpipe.generation.backpressure import Turnstile


def run(scenario: Coroutine[Any, Any, list[str]]) -> list[str]:
    """In a thread of its own: tests with a browser leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scenario).result()


async def are_in(turnstile: Turnstile, *units: str) -> list[str]:
    """Those of the units, all of which ask at once, that are let in without anybody leaving."""
    asking = {unit: asyncio.create_task(turnstile.enter(unit)) for unit in units}
    await asyncio.sleep(0.01)
    return [unit for unit, task in asking.items() if task.done()]


def test_no_more_units_than_fit_are_let_in():
    assert run(are_in(Turnstile(2), "a", "b", "c", "d")) == ["a", "b"]


def test_a_unit_that_comes_again_is_inside_already():
    assert run(are_in(Turnstile(2), "a", "b", "c", "a", "b")) == ["a", "b"]


def test_one_that_leaves_makes_room_for_one():
    async def scenario() -> list[str]:
        turnstile = Turnstile(2)
        waiting = asyncio.create_task(are_in(turnstile, "a", "b", "c", "d"))
        await asyncio.sleep(0.001)
        await turnstile.leave("a")
        await turnstile.leave("never seen")
        return await waiting

    assert run(scenario()) == ["a", "b", "c"]


def test_nobody_waits_for_a_unit_that_left_before_it_was_counted():
    async def scenario() -> list[str]:
        turnstile = Turnstile(1)
        await turnstile.leave("a")
        return await are_in(turnstile, "b", "c")

    assert run(scenario()) == ["b"]
