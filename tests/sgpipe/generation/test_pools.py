import uuid
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from pydantic import ValidationError

from sgpipe.errors import UserError
from sgpipe.generation import pools
from sgpipe.generation.pools import (
    Pool,
    cluster_has,
    plan_pools,
    required_resources,
)
from sgpipe.recipe import Resources
from sgpipe.utils.machines import machines_of


@dataclass(frozen=True)
class Stub:
    name: str
    resources: Resources = field(default_factory=Resources)
    fills: tuple[str, ...] = ()

    def setup(self) -> None: ...

    def __call__(self, records: list) -> list:
        return records


GPU = Resources(gpus=1)


def node(cpus: float, gpus: float = 0, memory: float = 0, alive: bool = True) -> dict[str, Any]:
    """A machine as `ray.nodes()` lists it."""
    resources = {"CPU": float(cpus), "GPU": float(gpus), "memory": memory * 2**30, "node:10.0.0.1": 1.0}
    return {
        "NodeID": uuid.uuid4().hex,
        "Alive": alive,
        "Resources": {name: amount for name, amount in resources.items() if amount},
    }


@pytest.fixture
def cluster(monkeypatch):
    def has(*nodes: dict[str, Any]) -> list[dict[str, Any]]:
        monkeypatch.setattr(pools.ray, "nodes", lambda: nodes)
        return list(nodes)

    return has


def shape(stages, units: int = 100) -> list[tuple[str, int]]:
    planned = plan_pools(stages, units)
    taken = Counter(node for pool in planned for node in pool.nodes)
    assert sum(taken.values()) == sum(pool.actors for pool in planned)
    assert_fits(planned)
    return [("+".join(s.name for s in pool.stages), pool.actors) for pool in planned]


def assert_fits(planned: list[Pool]) -> None:
    """By Ray's rules: each actor within one machine, a part of a GPU within one GPU."""
    for machine in machines_of(pools.ray.nodes()):
        here = [pool.need for pool in planned for node in pool.nodes if node == machine.node]
        assert sum(need.cpus for need in here) <= machine.cpus + 1e-6
        assert sum(need.memory for need in here) <= machine.memory + 1e-6 or not any(need.memory for need in here)
        whole = sum(need.gpus for need in here if need.gpus >= 1)
        shared = len(machine.gpus) - whole
        parts = sorted((need.gpus for need in here if 0 < need.gpus < 1), reverse=True)
        bins = [1.0] * int(shared)
        for part in parts:  # first fit is enough for the sizes here
            number = next(number for number, free in enumerate(bins) if free >= part - 1e-6)
            bins[number] -= part


def test_stages_of_equal_resources_share_actors_that_fill_the_machine(cluster):
    cluster(node(4))
    assert shape([Stub("a"), Stub("b"), Stub("c")]) == [("a+b+c", 4)]


def test_pools_share_what_is_left(cluster):
    cluster(node(8, 2))
    stages = [Stub("caption", GPU), Stub("parse"), Stub("pair"), Stub("tag", Resources(gpus=0.5))]
    assert shape(stages) == [("caption", 1), ("parse+pair", 5), ("tag", 2)]


def test_a_fixed_number_of_actors_is_kept(cluster):
    cluster(node(8))
    assert shape([Stub("a", Resources(actors=2)), Stub("b")]) == [("a", 2), ("b", 6)]


def test_no_more_actors_than_units(cluster):
    cluster(node(8))
    assert shape([Stub("a")], units=3) == [("a", 3)]


# Machines, stages, and the actors that each pool gets.
PLANS = {
    "one machine has no room, the other has": (
        [node(4), node(2)],
        [Stub("a", Resources(cpus=4, actors=1)), Stub("b")],
        [1, 2],
    ),
    "the large actor comes first, whatever its place": (
        [node(4), node(2)],
        [Stub("b", Resources(actors=2)), Stub("a", Resources(cpus=4))],
        [2, 1],
    ),
    "four in sum, three in each": ([node(5), node(5)], [Stub("a", Resources(cpus=3))], [2]),
    "GPUs on one machine, CPUs on another": ([node(2, 2), node(8)], [Stub("tag", GPU), Stub("parse")], [2, 8]),
    "a small head node takes none": ([node(0), node(2)], [Stub("a")], [2]),
    "two of 0.6 do not share a GPU": ([node(8, 2)], [Stub("a", Resources(gpus=0.6))], [2]),
    "two of 0.5 do": ([node(8, 2)], [Stub("a", Resources(gpus=0.5))], [4]),
    "three of a third do": ([node(8, 1)], [Stub("a", Resources(gpus=0.333))], [3]),
    "parts leave whole GPUs to those that need them": (
        [node(8, 2)],
        [Stub("a", Resources(gpus=0.5, actors=2)), Stub("b", GPU)],
        [2, 1],
    ),
    "two GPUs of one machine": (
        [node(8, 1), node(8, 1), node(8, 2)],
        [Stub("a", Resources(gpus=2)), Stub("b", GPU)],
        [1, 2],
    ),
    "parts of a CPU": ([node(1), node(1)], [Stub("a", Resources(cpus=0.4))], [4]),
    "memory counts": ([node(8, 0, 10), node(8, 0, 30)], [Stub("a", Resources(memory=12))], [2]),
    "lost machines do not count": ([node(4), node(4, alive=False)], [Stub("a")], [4]),
    "no greedy choice fits": (
        [node(6), node(5)],
        [
            Stub("a", Resources(cpus=3, actors=1)),
            Stub("b", Resources(cpus=2.5, actors=2)),
            Stub("c", Resources(cpus=3, actors=1)),
        ],
        [1, 2, 1],
    ),
    "an arrangement has to be searched": (
        [node(10), node(9)],
        [
            Stub("a", Resources(cpus=5, actors=1)),
            Stub("b", Resources(cpus=4, actors=1)),
            Stub("c", Resources(cpus=3, actors=2)),
            Stub("d", Resources(cpus=2, actors=2)),
        ],
        [1, 1, 2, 2],
    ),
}


@pytest.mark.parametrize("plan", PLANS)
def test_each_actor_fits_on_a_machine(cluster, plan):
    nodes, stages, actors = PLANS[plan]
    cluster(*nodes)
    assert [number for _, number in shape(stages)] == actors


def test_a_plan_is_found_for_machines_that_were_cut_into_actors(cluster):
    """Whatever the sizes: where an arrangement exists, one is found."""
    random = Random(0)
    for _ in range(60):
        needs: list[Resources] = []
        nodes = []
        for _ in range(random.randint(1, 4)):
            own = [
                Resources(cpus=random.choice([0.5, 1, 2, 3, 5, 7]), gpus=random.choice([0, 0, 0, 1, 2]), actors=1)
                for _ in range(random.randint(1, 4))
            ]
            nodes.append(node(sum(each.cpus for each in own), sum(each.gpus for each in own)))
            needs += own
        cluster(*nodes)
        random.shuffle(needs)
        # Neighbours of equal resources are one pool, which here would have one actor.
        stages = [Stub(str(number), each) for number, each in enumerate(needs)]
        merged = [each for number, each in enumerate(stages) if not number or each.resources != needs[number - 1]]
        assert len(shape(merged)) == len(merged)


def test_thousands_of_actors_are_planned(cluster):
    cluster(*(node(64, 8) for _ in range(30)))
    assert shape([Stub("a", GPU), Stub("b")], 10_000) == [("a", 240), ("b", 30 * 64 - 240)]


MACHINES = [node(4), node(4), node(2, 1)]
REFUSALS = [
    (
        [Stub("tag", Resources(cpus=5))],
        "an actor of tag takes 5 CPUs, more than any machine has: Ray has 1 machine with 2 CPUs and 1 GPU, "
        "2 machines with 4 CPUs each; lower tag.resources.cpus",
    ),
    (
        [Stub("tag", Resources(gpus=2))],
        "an actor of tag takes 1 CPU and 2 GPUs, more than .*; lower tag.resources.gpus",
    ),
    (
        [Stub("tag", Resources(cpus=3, gpus=1))],
        ".* takes 3 CPUs and 1 GPU, more than .*; lower tag.resources.cpus and tag.resources.gpus",
    ),
    (
        [Stub("tag", Resources(memory=1))],
        ".* 1 GiB of memory, more than .* 1 machine with 2 CPUs and 1 GPU,.*lower tag.resources.memory",
    ),
    (
        [Stub("a", Resources(cpus=3)), Stub("tag", Resources(cpus=2, actors=6))],
        "the recipe asks for 15 CPUs at once, more than there are: Ray has .*; lower tag.resources.cpus or .actors",
    ),
    (
        [Stub("a", Resources(gpus=0.6)), Stub("tag", Resources(gpus=0.5))],
        "the recipe asks for 1.1 GPUs at once, more than there are: .*; lower a.resources.gpus or .actors",
    ),
    (
        [Stub("a", Resources(cpus=3, actors=3)), Stub("b", Resources(cpus=0.5))],
        "3 actors of 3 CPUs \\(a\\), 1 actor of 0.5 CPUs \\(b\\) do not fit on the machines, as each actor runs on "
        "one: Ray has 1 machine with 2 CPUs and 1 GPU, 2 machines with 4 CPUs each; lower a.resources.cpus or .actors",
    ),
]


@pytest.mark.parametrize(("stages", "message"), REFUSALS)
def test_what_does_not_fit_is_refused_with_the_machines_and_the_setting_to_change(cluster, stages, message):
    cluster(*MACHINES)
    with pytest.raises(UserError, match=f"^{message}$"):
        plan_pools(stages, 10)


def test_a_cluster_without_gpus_is_said_to_have_none(cluster):
    cluster(node(4))
    with pytest.raises(
        UserError, match="takes 1 CPU and 1 GPU, more than any machine has: Ray has 1 machine with 4 CPUs; lower"
    ):
        plan_pools([Stub("tag", GPU)], 10)


def test_what_is_left_of_a_cluster_is_judged_by_machine(cluster):
    """Two machines of half the size are as much in sum, but an actor of the lost size would wait for ever."""
    large, *_ = cluster(node(4), node(2))
    required = required_resources(plan_pools([Stub("a", Resources(cpus=4, actors=1)), Stub("b")], 10))
    assert cluster_has(required)
    cluster({**large, "Alive": False}, node(2), node(2), node(2))
    assert not cluster_has(required)
    cluster({**large, "Alive": False}, node(2), node(5))
    assert cluster_has(required)
    cluster()
    assert not cluster_has(required)


@pytest.mark.parametrize("gpus", [1.5, 2.1])
def test_parts_of_several_gpus_are_refused(gpus):
    with pytest.raises(ValidationError, match="a part of one GPU"):
        Resources(gpus=gpus)
