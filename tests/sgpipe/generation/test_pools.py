"""Sizing pools to the machines of a cluster. That Ray places what is planned: test_ray_engine.py."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sgpipe.errors import UserError
from sgpipe.generation.ray_engine import plan_pools
from sgpipe.recipe import Resources
from sgpipe.stages.base import Stage


@dataclass(frozen=True)
class Stub(Stage):
    name: str
    resources: Resources = field(default_factory=Resources)

    def __call__(self, records: list) -> list:
        return records


GPU = Resources(gpus=1)


def node(cpus: float, gpus: float = 0, memory: float = 0, alive: bool = True) -> dict[str, Any]:
    """A machine as `ray.nodes()` lists it."""
    return {"Alive": alive, "Resources": {"CPU": float(cpus), "GPU": float(gpus), "memory": memory * 2**30}}


def shape(stages: list[Stub], nodes: list[dict[str, Any]], units: int = 100) -> list[tuple[str, int]]:
    planned = plan_pools(stages, units, nodes)
    return [("+".join(stage.name for stage in pool.stages), pool.actors) for pool in planned]


LABEL = [Stub("caption", GPU), Stub("parse"), Stub("pair"), Stub("tag", GPU)]


@pytest.mark.parametrize(
    ("stages", "nodes", "units", "expected"),
    [
        ([Stub("caption"), Stub("parse")], [node(4)], 100, [("caption+parse", 4)]),
        ([Stub("caption"), Stub("parse")], [node(4)], 3, [("caption+parse", 3)]),
        ([Stub("caption"), Stub("parse")], [node(4), node(2), node(8, alive=False)], 100, [("caption+parse", 6)]),
        (LABEL, [node(8, 2)], 100, [("caption", 1), ("parse+pair", 6), ("tag", 1)]),
        (LABEL, [node(4, 1), node(4, 1)], 100, [("caption", 1), ("parse+pair", 6), ("tag", 1)]),
        ([Stub("caption", Resources(actors=2)), Stub("tag")], [node(8)], 100, [("caption", 2), ("tag", 6)]),
        ([Stub("tag", Resources(cpus=3))], [node(4), node(5)], 100, [("tag", 2)]),
        ([Stub("tag", Resources(gpus=0.4, cpus=0.1))], [node(8, 3)], 100, [("tag", 6)]),
        ([Stub("tag", Resources(memory=3))], [node(8, memory=10)], 100, [("tag", 3)]),
    ],
)
def test_pools_share_the_machines(
    stages: list[Stub], nodes: list[dict[str, Any]], units: int, expected: list[tuple[str, int]]
) -> None:
    assert shape(stages, nodes, units) == expected


@pytest.mark.parametrize(
    ("stages", "nodes", "setting"),
    [
        ([Stub("tag", Resources(cpus=3))], [node(2), node(2)], "tag"),
        (LABEL, [node(8, 1)], "caption"),
        ([Stub("parse", Resources(actors=9)), Stub("tag", Resources(cpus=0.5))], [node(8)], "parse"),
        ([Stub("tag", Resources(gpus=0.6, actors=2))], [node(8, 1)], "tag"),
        ([Stub("tag", Resources(memory=3))], [node(8, memory=2)], "tag"),
    ],
)
def test_actors_that_do_not_fit_are_refused(stages: list[Stub], nodes: list[dict[str, Any]], setting: str) -> None:
    with pytest.raises(UserError, match=rf"lower {setting}\.resources$"):
        plan_pools(stages, 100, nodes)


@given(st.lists(st.tuples(st.integers(1, 16), st.integers(0, 4)), min_size=1, max_size=4), st.integers(1, 50))
def test_no_pool_is_larger_than_its_work_and_none_can_grow(machines: list[tuple[int, int]], units: int) -> None:
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


@pytest.mark.parametrize("gpus", [1.5, 2.1])
def test_parts_of_several_gpus_are_refused(gpus: float) -> None:
    with pytest.raises(ValidationError, match="a part of one GPU"):
        Resources(gpus=gpus)
