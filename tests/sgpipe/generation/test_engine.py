"""Sizing pools to the machines of a cluster, sharing the GPUs of a machine, placing actors, and
backpressure.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sgpipe.errors import EngineError, UserError, WorkersLostError
from sgpipe.generation import engine, ray_engine, ray_growth, ray_pools
from sgpipe.generation.engine import (
    LabelledUnit,
    WorkUnit,
    share_gpus,
    stages_sharing_gpus,
)
from sgpipe.generation.ray_engine import kill_actors
from sgpipe.generation.ray_growth import Growth, await_machines
from sgpipe.generation.ray_limit import UnitLimit
from sgpipe.generation.ray_pools import Pool, is_placed, plan_pools, reserve
from sgpipe.recipe import STAGES, EngineConfig, Recipe, Resources, StagePlan
from sgpipe.recipe.stage import Requests, StageConfig
from sgpipe.recipe.stages import CaptionConfig
from sgpipe.stages.base import Stage
from sgpipe.stages.runner import StageRunner
from sgpipe.storage.manifest import ShardEntry
from sgpipe.utils.ray_cluster import start_ray
from tests.values import values_of


@dataclass
class Stub(Stage):
    name: str
    resources: Resources = field(default_factory=Resources)
    config: StageConfig = field(default_factory=CaptionConfig)
    streams: bool = False

    def __call__(self, records: list) -> list:
        return records


GPU = Resources(gpus=1)


def node(cpus: float, gpus: float = 0, memory: float = 0, alive: bool = True) -> dict[str, Any]:
    """A machine as `ray.nodes()` lists it."""
    return {
        "Alive": alive,
        "Resources": {"CPU": float(cpus), "GPU": float(gpus), "memory": memory * 2**30},
    }


def shape(
    stages: list[Stub], nodes: list[dict[str, Any]], units: int = 100
) -> list[tuple[str, int]]:
    return [
        ("+".join(values_of(pool.stages, "name")), pool.actors)
        for pool in plan_pools(stages, units, nodes)
    ]


LABEL = [Stub("caption", GPU), Stub("parse"), Stub("pair"), Stub("tag", GPU)]


@pytest.mark.parametrize(
    ("stages", "nodes", "units", "expected"),
    [
        ([Stub("caption"), Stub("parse")], [node(4)], 100, [("caption+parse", 4)]),
        (
            [Stub("caption"), Stub("parse")],
            [node(4), node(2), node(8, alive=False)],
            100,
            [("caption+parse", 6)],
        ),
        (LABEL, [node(8, 2)], 100, [("caption", 1), ("parse+pair", 6), ("tag", 1)]),
        (
            [Stub("caption", Resources(actors=2)), Stub("tag")],
            [node(8)],
            100,
            [("caption", 2), ("tag", 6)],
        ),
        ([Stub("tag", Resources(cpus=3))], [node(4), node(5)], 100, [("tag", 2)]),
        ([Stub("tag", Resources(gpus=0.4, cpus=0.1))], [node(8, 3)], 100, [("tag", 6)]),
        ([Stub("tag", Resources(memory=3))], [node(8, memory=10)], 100, [("tag", 3)]),
    ],
)
def test_pools_share_the_machines(
    stages: list[Stub], nodes: list[dict[str, Any]], units: int, expected: list[tuple[str, int]]
) -> None:
    assert shape(stages, nodes, units) == expected


@pytest.mark.parametrize(("requests", "actors", "share"), [(100, 8, 12), (3, 3, 1), (5000, 8, 512)])
def test_actors_share_the_requests_of_a_run(requests: int, actors: int, share: int) -> None:
    config = CaptionConfig(
        endpoint="http://localhost:8000/v1", requests=Requests(in_flight_of_run=requests)
    )
    [pool] = plan_pools([Stub("caption", config=config, streams=True)], 100, [node(8)])
    assert pool.actors == actors
    [stage] = pool.stages_of_actor
    assert stage.config.requests.in_flight == share


def test_each_actor_needs_a_request() -> None:
    with pytest.raises(ValueError, match="is 3, less than one for each of 4 actors"):
        CaptionConfig(
            endpoint="http://localhost:8000/v1",
            requests=Requests(in_flight_of_run=3),
            resources=Resources(min_actors=4),
        )


@pytest.mark.parametrize(
    ("stages", "nodes", "setting"),
    [
        ([Stub("tag", Resources(cpus=3))], [node(2), node(2)], "tag"),
        (LABEL, [node(8, 1)], "caption"),
        (
            [Stub("parse", Resources(actors=9)), Stub("tag", Resources(cpus=0.5))],
            [node(8)],
            "parse",
        ),
        ([Stub("tag", Resources(gpus=0.6, actors=2))], [node(8, 1)], "tag"),
        ([Stub("tag", Resources(memory=3))], [node(8, memory=2)], "tag"),
    ],
)
def test_actors_that_do_not_fit_are_refused(
    stages: list[Stub], nodes: list[dict[str, Any]], setting: str
) -> None:
    with pytest.raises(UserError, match=rf"lower {setting}\.resources$"):
        plan_pools(stages, 100, nodes)


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(1, 50),
)
def test_no_pool_is_larger_than_its_work_and_none_can_grow(
    machines: list[tuple[int, int]], units: int
) -> None:
    stages = [Stub("caption", Resources(cpus=1)), Stub("tag", Resources(cpus=0.5))]
    nodes = [node(*machine) for machine in machines]
    cpus = sum(machine[0] for machine in machines)
    try:
        planned = plan_pools(stages, units, nodes)
    except UserError:
        assert cpus < 1.5
        return
    left = cpus - sum(pool.actors * pool.resources.cpus for pool in planned)
    assert left >= 0
    assert all(pool.actors == units or pool.resources.cpus > left for pool in planned)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "usable_gpus", lambda: 1)


def recipe_with(**settings: object) -> Recipe:
    return Recipe.model_validate(
        {"caption": {"captioner": "blip"}, "tag": {"tagger": "tagger"}, **settings}
    )


def shared(number: int, cpus: int, **settings: object) -> StagePlan:
    recipe = recipe_with(**settings)
    plan = StagePlan.of_recipe(recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "usable_gpus", lambda: number)
        patch.setattr(os, "cpu_count", lambda: cpus)
        sharing = stages_sharing_gpus(recipe.stages, recipe.engine, {})
        return share_gpus(plan, sharing, recipe.engine)


def planned_on(number: int, cpus: int, **settings: object) -> list[tuple[str, int]]:
    plan = shared(number, cpus, **settings)
    absent = {"ground", *(["detect"] if plan.detect.detector is None else [])}
    stages = [Stub(name, plan.section(name).resources) for name in STAGES if name not in absent]
    return shape(stages, [node(cpus, number)])


@pytest.mark.parametrize(
    ("number", "cpus", "expected"),
    [
        (1, 16, (1, 15, 1)),
        (8, 96, (8, 88, 8)),
        (2, 8, (2, 6, 2)),
        (1, 2, (1, 1, 1)),
        (4, 4, (2, 2, 2)),
    ],
)
def test_each_gpu_gets_a_captioner_and_a_tagger(
    gpus, number: int, cpus: int, expected: tuple[int, ...]
) -> None:
    assert planned_on(number, cpus) == list(
        zip(("caption", "parse+pair", "tag"), expected, strict=True)
    )
    neighbours = [("detect+caption", 1), ("parse+pair", 15), ("tag", 1)]
    assert planned_on(1, 16, detect={"detector": "detr"}) == neighbours


def test_models_share_the_gpus_of_a_machine(gpus) -> None:
    plan = shared(1, 16)
    assert (
        plan.caption.resources == plan.tag.resources == Resources(gpus=0.5, cpus=0.5, io_threads=4)
    )
    assert plan.parse.resources == Resources()
    assert shared(1, 16, caption={}).tag.resources.gpus == 1
    assert shared(4, 8).tag.resources.io_threads == 2
    served = shared(1, 16, caption={"captioner": "qwen", "endpoint": "http://localhost:8000/v1"})
    assert (served.caption.resources.gpus, served.tag.resources.gpus) == (None, 1)
    for method in ("all", "overlap"):
        plan = shared(1, 16, tag={"method": method, "tagger": "tagger"})
        assert (plan.caption.resources.gpus, plan.tag.resources.gpus) == (1, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"tag": {"tagger": "t", "resources": {"gpus": 0.25}}},
        {
            "tag": {"tagger": "t", "device": "cpu"},
            "caption": {"captioner": "c", "resources": {"gpus": 0}},
        },
        {"tag": {"method": "all"}, "caption": {}},
        {"engine": {"address": "auto"}},
    ],
)
def test_what_the_recipe_says_of_gpus_and_all_else_is_kept(gpus, settings: dict[str, Any]) -> None:
    assert shared(2, 16, **settings) == StagePlan.of_recipe(recipe_with(**settings))
    plan = shared(
        1, 16, tag={"tagger": "t", "resources": {"cpus": 2, "actors": 3, "io_threads": 7}}
    )
    assert plan.tag.resources == Resources(gpus=0.16, cpus=2, actors=3, io_threads=7)
    assert planned_on(1, 16, tag={"tagger": "t", "resources": {"actors": 6}})[-1] == ("tag", 6)


def run(scenario: Coroutine[Any, Any, list[str]]) -> list[str]:
    """In a thread of its own: tests with a browser leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, scenario).result()


async def settled() -> None:
    """Let every task run until it waits: turns of the loop, not seconds, so that a slow machine
    changes nothing.
    """
    for _ in range(100):
        await asyncio.sleep(0)


def test_no_more_units_than_the_limit_are_in_progress_and_one_that_comes_again_is():
    async def scenario() -> list[str]:
        limit = UnitLimit(2, {})
        await limit.leave("never seen")
        tasks = [(unit, asyncio.create_task(limit.enter(unit))) for unit in "abcabde"]
        await settled()
        assert [unit for unit, task in tasks if task.done()] == ["a", "b", "a", "b"]
        await limit.leave("a")
        await settled()
        await asyncio.wait_for(limit.enter("a"), 9)  # it is done, and takes no room
        return [unit for unit, task in tasks if task.done()]

    assert run(scenario()) == ["a", "b", "c", "a", "b"]  # "c" has asked before "d" and "e"


def test_a_closed_limit_turns_further_units_away():
    async def scenario() -> list[bool]:
        limit = UnitLimit(2, {})
        admitted = [await limit.enter("a"), await limit.enter("b")]
        waiting = asyncio.create_task(limit.enter("c"))
        await limit.close()
        for unit, left in (("a", 1), ("b", 0)):
            assert await limit.enter(unit)  # it comes again, as its actor was lost
            await limit.leave(unit)
            assert await limit.in_progress() == left
        return [*admitted, await waiting, await limit.enter("d")]

    assert run(scenario()) == [True, True, False, False]


def pools_of(*actors: int, **resources: int) -> list[Pool]:
    return [Pool((Stub("caption"),), Resources(**resources), number) for number in actors]


@pytest.mark.parametrize(
    ("actors", "units", "looks"),
    [
        ([4, 4, 5, 5, 5, 5, 5, 5], 100, 8),
        ([5, 5, 5, 4, 5, 5, 5, 5, 5, 5], 100, 10),  # a machine that goes again
        ([4] * 20, 100, None),
        ([5] * 20, 19, None),  # too few are left
        ([5] * 20, 0, None),
    ],
)
def test_a_graph_ends_for_machines_that_stay(
    actors: list[int], units: int, looks: int | None
) -> None:
    machines = iter(actors)
    closed: list[bool] = []
    growth = Growth(
        pools_of(2),  # other jobs leave no more
        pools_of(4),
        lambda units: pools_of(next(machines)),
        waiting_units=units,
        close=lambda: closed.append(True),
    )
    growth.look(False)  # a machine is lost: what comes is for the actors of the graph
    number = next((look for look in range(1, len(actors) + 1) if grows(growth)), None)
    assert number == looks
    assert closed == [True] * growth.has_begun


def grows(growth: Growth) -> bool:
    growth.look(True)
    return growth.has_begun


def test_an_autoscaler_is_asked_for_the_most_actors_while_units_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[object] = []

    def ask(needs: list[dict[str, float]], strategy: str) -> object:
        asked.append(object())
        return asked[-1]

    monkeypatch.setattr(ray_growth, "placement_group", ask)
    monkeypatch.setattr(ray_growth, "remove_placement_group", asked.remove)
    pools = pools_of(2, max_actors=10)
    growth = Growth(pools, pools, lambda units: pools, waiting_units=100, close=lambda: None)
    sizes = []
    for waiting, has_place in [(100, True), (100, False), (24, True), (8, True), (48, True)]:
        growth.waiting_units = waiting
        growth.look(has_place)
        sizes.append(len(asked))
    assert sizes == [8, 0, 4, 0, 8]
    growth.end()
    assert asked == []


def test_a_run_waits_for_its_first_machines_as_long_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_growth, "placement_group", lambda needs, strategy: None)
    monkeypatch.setattr(ray_growth, "remove_placement_group", lambda group: None)
    monkeypatch.setattr(ray_growth, "_LOOK_SECONDS", 0.0)
    said: list[str] = []
    clusters = iter([[], [], [], [node(1)], [node(1), node(1)]])
    await_machines(pools_of(2), lambda: next(clusters), 600, said.append)
    assert [line.split(":")[0] for line in said] == ["waiting up to 10 min for machines"]
    with pytest.raises(UserError, match=r"2 × 1 CPU \(caption\) on nothing; lower caption"):
        await_machines(pools_of(2), list, 1e-9, said.append)
    await_machines(pools_of(2), list, 0, said.append)  # `plan_pools` refuses them
    assert len(said) == 2


def test_a_line_that_all_workers_say_is_passed_on_once():
    async def scenario() -> list[str]:
        limit = UnitLimit(1, {})
        for line in ("it is away", "it is away", "it is back", "it is away"):
            await limit.say(line)
        return [await limit.next_line() for _ in range(3)]

    assert run(scenario()) == ["it is away", "it is back", "it is away"]


def test_a_line_that_holds_for_the_whole_graph_is_passed_on_once():
    async def scenario() -> list[str]:
        limit = UnitLimit(1, {})
        for line in ("gpu7 has torch 2.12", "gpu8 has torch 2.12", "gpu7 has torch 2.12"):
            await limit.say_once(line)
        await limit.say("the end")
        return [await limit.next_line() for _ in range(3)]

    assert run(scenario()) == ["gpu7 has torch 2.12", "gpu8 has torch 2.12", "the end"]


def test_machines_are_compared_with_the_driver_and_for_what_it_lacks_with_the_first():
    async def scenario() -> list[dict[str, str]]:
        limit = UnitLimit(1, {"torch": "2.13"})
        first = await limit.common_software({"torch": "2.12", "driver": "570"})
        return [first, await limit.common_software({"torch": "2.13", "driver": "580"})]

    assert run(scenario()) == [{"torch": "2.13", "driver": "570"}] * 2


class Crashing(ray_engine.RayEngine):
    """Crashes on one unit unless it isolates images; `graphs`: the first unit and the number of
    units of each attempt.
    """

    def __init__(self, fatal: int) -> None:
        super().__init__(EngineConfig())
        self._stages = [Stub("caption")]
        self.workers = {("caption",): 1}
        self.fatal = fatal
        self.graphs: list[tuple[str, int, int]] = []

    def _run_once(self, units, reader, writer, kind):
        self._most_in_progress = 4
        self.graphs.append((kind.__name__, units[0].start, len(units)))
        for unit in units:
            if unit.start == self.fatal and kind is StageRunner:
                raise WorkersLostError("a worker is lost")
            shard = ShardEntry("val", unit.start, unit.stop, "data/a.parquet", sha256="", bytes=0)
            yield LabelledUnit(shard, [])


@pytest.mark.parametrize("requests", [0, 8])
def test_after_a_crash_units_stream_again(monkeypatch: pytest.MonkeyPatch, requests: int) -> None:
    monkeypatch.setattr(ray_engine, "streamed_requests", lambda stages: requests)
    crashing = Crashing(fatal=3)
    units = [WorkUnit("val", start, start + 1) for start in range(10)]
    assert len(list(crashing.run(units, None, None))) == 10
    whole = ("StageRunner", 0, 10)
    if requests:
        assert crashing.graphs == [whole, ("IsolatedRunner", 3, 4), ("StageRunner", 7, 3)]
    else:
        assert crashing.graphs == [whole, ("IsolatedRunner", 3, 7)]


class Cluster:
    """Answers whether there is room for a graph, from a list; after that always as the last
    answer.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
        self.answers = answers
        self.polls = 0
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


def test_a_graph_that_stands_still_on_a_cluster_that_is_too_small_is_ended(
    monkeypatch: pytest.MonkeyPatch,
):
    # the second time the machine does not come back
    cluster = Cluster(monkeypatch, True, False, False, True, False)

    def look() -> None:
        raise ConnectionError  # by a client at ray://

    with ray_engine._watch("graph", None, look):
        assert cluster.long_after.wait(30)
    first = 4 + ray_engine._POLLS_WITHOUT_ROOM
    assert cluster.killed[:3] == [first, first + 1, first + 2]  # Ray Data replaces some


def test_a_graph_that_advances_may_end_on_a_cluster_that_is_too_small(
    monkeypatch: pytest.MonkeyPatch,
):
    cluster = Cluster(monkeypatch, False)
    polled = cluster.has
    entered = threading.Event()

    def advance(required: object) -> bool:
        assert entered.wait(30)
        advanced.set()
        advanced.clear = lambda: None  # as if a row came before each poll
        return polled(required)

    monkeypatch.setattr(ray_engine, "is_placed", advance)
    with ray_engine._watch("graph", None, lambda: None) as advanced:
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
    pools = [Pool((Stub("stub", Resources(cpus=2)),), Resources(cpus=2), 1)]  # all CPUs
    [pool], placed = reserve(pools)

    def start(name: str) -> ray.actor.ActorHandle:
        placement_group_scheduling_strategy = PlacementGroupSchedulingStrategy(placed, 0)
        return (
            ray.remote(Occupant)
            .options(
                name=name,
                num_cpus=2,
                max_restarts=8,
                scheduling_strategy=placement_group_scheduling_strategy,
            )
            .remote()
        )

    actors = [start("old graph 1"), start("old graph 2")]  # one runs, one waits for room
    ray.get(actors[0].__ray_ready__.remote())
    kill_actors("old graph ")
    ray.util.remove_placement_group(placed)
    [_], placed = reserve([pool])
    ray.get(start("new graph 1").__ray_ready__.remote())
    kill_actors("new graph ")
    ray.util.remove_placement_group(placed)


class Occupant:
    """Takes CPUs and does nothing."""


@pytest.mark.slow
def test_actors_that_cannot_be_placed_are_fewer_or_refused(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pools, "_PLACING_SECONDS", 5.0)
    pool = Pool((Stub("stub"),), Resources(), 3)  # more than the two CPUs have room for
    [smaller], placed = reserve([pool])
    assert smaller.actors == 2
    assert is_placed(placed)
    with pytest.raises(
        EngineError,
        match=r"lower stub\.resources, or wait for other jobs, which leave nothing free",
    ):
        reserve([replace(pool, actors=1)])
    ray.util.remove_placement_group(placed)
    with pytest.raises(UserError, match=r"lower stub\.resources"):
        reserve([Pool((Stub("stub", Resources(gpus=0.5)),), Resources(gpus=1), 1)])
