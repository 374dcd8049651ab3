"""Backpressure: how many units the engine admits; and a graph that stands still on a cluster that is too small."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sgpipe.errors import UserError
from sgpipe.generation import ray_engine
from sgpipe.generation.engine import WorkUnit
from sgpipe.generation.ray_engine import Pool, UnitLimit, is_placed, kill_actors, reserve
from sgpipe.recipe import Resources
from sgpipe.records import Mention, Record
from sgpipe.stages.base import Stage, Usage
from sgpipe.utils.ray_cluster import start_ray


def run(scenario: Coroutine[Any, Any, list[str]]) -> list[str]:
    """In a thread of its own: tests with a browser leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scenario).result()


async def settled() -> None:
    """Let every task run until it waits: turns of the loop, not seconds, so that a slow machine changes nothing."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_no_more_units_than_the_limit_are_in_progress_and_one_that_comes_again_is():
    async def scenario() -> list[str]:
        limit = UnitLimit(2)
        await limit.leave("never seen")
        tasks = [(unit, asyncio.create_task(limit.enter(unit))) for unit in "abcabde"]
        await settled()
        assert [unit for unit, task in tasks if task.done()] == ["a", "b", "a", "b"]
        await limit.leave("a")
        await settled()
        return [unit for unit, task in tasks if task.done()]

    assert run(scenario()) == ["a", "b", "c", "a", "b"]  # "c" has asked before "d" and "e"


class Cluster:
    """Answers whether there is room for a graph, from a list; after that always as the last answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
        self.answers, self.polls = answers, 0
        self.killed: list[int] = []
        self.long_after = threading.Event()
        monkeypatch.setattr(ray_engine, "_POLL_SECONDS", 0.001)
        monkeypatch.setattr(ray_engine, "is_placed", self.has)
        monkeypatch.setattr(ray_engine, "kill_actors", self.kill)

    def has(self, required: object) -> bool:
        self.polls += 1
        if self.polls == 30:
            self.long_after.set()
        return self.answers[min(self.polls, len(self.answers)) - 1]

    def kill(self, name: str) -> None:
        assert name == "graph"
        self.killed.append(self.polls)


def test_a_graph_that_stands_still_on_a_cluster_that_is_too_small_is_ended(monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch, True, False, False, True, False)  # the second time the machine does not come back
    with ray_engine._watch("graph", None):
        assert cluster.long_after.wait(30)
    first = 4 + ray_engine._POLLS_WITHOUT_ROOM
    assert cluster.killed[:3] == [first, first + 1, first + 2]  # Ray Data replaces some


def test_a_graph_that_advances_may_end_on_a_cluster_that_is_too_small(monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch, False)
    polled, entered = cluster.has, threading.Event()

    def advance(required: object) -> bool:
        assert entered.wait(30)
        advanced.set()
        advanced.clear = lambda: None  # as if a row came before each poll
        return polled(required)

    monkeypatch.setattr(ray_engine, "is_placed", advance)
    with ray_engine._watch("graph", None) as advanced:
        entered.set()
        assert not cluster.long_after.wait(0.2)
    assert cluster.killed == []
    assert cluster.polls == 1


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    start_ray(cpus=2)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_actors_of_a_graph_that_failed_make_room_for_the_next(local_ray: None) -> None:
    pools = [Pool((OnGpu(resources=Resources(cpus=2)),), Resources(cpus=2), 1)]  # all CPUs
    [pool], placed = reserve(pools)

    def start(name: str) -> ray.actor.ActorHandle:
        there = PlacementGroupSchedulingStrategy(placed, 0)
        return ray.remote(Occupant).options(name=name, num_cpus=2, max_restarts=8, scheduling_strategy=there).remote()

    kept = [start("old graph 1"), start("old graph 2")]  # one runs, one waits for room
    ray.get(kept[0].__ray_ready__.remote())
    kill_actors("old graph ")
    ray.util.remove_placement_group(placed)
    [_], placed = reserve([pool])
    ray.get(start("new graph 1").__ray_ready__.remote())
    kill_actors("new graph ")
    ray.util.remove_placement_group(placed)


class Occupant:
    """Takes CPUs and does nothing."""


@pytest.mark.slow
def test_actors_that_cannot_be_placed_are_fewer_or_refused(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_PLACING_SECONDS", 5.0)
    pool = Pool((OnGpu(resources=Resources()),), Resources(), 3)  # more than the two CPUs have room for
    [smaller], placed = reserve([pool])
    assert smaller.actors == 2
    assert is_placed(placed)
    ray.util.remove_placement_group(placed)
    with pytest.raises(UserError, match=r"lower stub\.resources"):
        reserve([Pool((OnGpu(),), Resources(gpus=1), 1)])


@dataclass
class OnGpu(Stage):
    name: str = "stub"
    resources: Resources = field(default_factory=lambda: Resources(gpus=0.5))

    def __call__(self, records: list[Record]) -> list[Record]:
        return records


def test_mentions_pass_from_pool_to_pool():
    mentions = [Mention("dogs", "dog", ("two", "wet"), 1)]
    records = [Record(str(number), "d", "val", "a.jpg", 9, 9) for number in range(3)]
    records[0].mentions, records[1].mentions = mentions, []
    block = ray_engine._block(WorkUnit("val", 0, 0, 3), Usage(), records)
    assert [record.mentions for record in ray_engine._records(block)] == [mentions, [], None]
