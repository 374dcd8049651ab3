from dataclasses import dataclass, field

import pytest

from sgpipe.errors import UserError
from sgpipe.generation import pools
from sgpipe.generation.pools import plan_pools
from sgpipe.recipe import Resources


@dataclass(frozen=True)
class Stub:
    name: str
    resources: Resources = field(default_factory=Resources)
    fills: tuple[str, ...] = ()

    def setup(self) -> None: ...

    def __call__(self, records: list) -> list:
        return records


GPU = Resources(gpus=1)


@pytest.fixture
def cluster(monkeypatch):
    def has(cpus: float, gpus: float = 0) -> None:
        found = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
        monkeypatch.setattr(pools.ray, "cluster_resources", lambda: found)

    return has


def shape(stages, units: int = 100) -> list[tuple[str, int]]:
    return [("+".join(s.name for s in pool.stages), pool.actors) for pool in plan_pools(stages, units)]


def test_stages_of_equal_resources_share_actors_that_fill_the_machine(cluster):
    cluster(4)
    assert shape([Stub("a"), Stub("b"), Stub("c")]) == [("a+b+c", 4)]


def test_pools_share_what_is_left(cluster):
    cluster(8, 2)
    stages = [Stub("caption", GPU), Stub("parse"), Stub("pair"), Stub("tag", Resources(gpus=0.5))]
    assert shape(stages) == [("caption", 1), ("parse+pair", 5), ("tag", 2)]


def test_a_fixed_number_of_actors_is_kept(cluster):
    cluster(8)
    assert shape([Stub("a", Resources(actors=2)), Stub("b")]) == [("a", 2), ("b", 6)]


def test_no_more_actors_than_units(cluster):
    cluster(8)
    assert shape([Stub("a")], units=3) == [("a", 3)]


@pytest.mark.parametrize(
    ("resources", "message"),
    [(Resources(cpus=5), "asks for 5 cpus at once, Ray has 4"), (GPU, "asks for 1 gpus at once, Ray has 0")],
)
def test_what_does_not_fit_is_refused_with_the_setting_to_change(cluster, resources, message):
    cluster(4)
    with pytest.raises(UserError, match=message) as caught:
        plan_pools([Stub("tag", resources)], 10)
    assert "tag.resources." in str(caught.value)
