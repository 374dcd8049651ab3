"""Sharing the GPUs of a machine, and how busy workers were."""

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.bench_pipeline import utilization_line
from sgpipe.generation import engine
from sgpipe.generation.engine import Estimate, Utilization, share_gpus, stages_sharing_gpus
from sgpipe.generation.identity import STAGES
from sgpipe.generation.ray_engine import plan_pools
from sgpipe.recipe import Recipe, Resources
from sgpipe.storage.manifest import ShardEntry
from tests.sgpipe.generation.test_pools import Stub, node


def test_an_estimate_is_made_after_two_units_of_each_worker(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sgpipe.generation.engine.time.monotonic", lambda: clock[0])
    estimate, said = Estimate(20, 2), []
    for clock[0] in (30.0, 30, 35, 35, 40, 40, 45, 45, 50, 50):  # two workers, which load models for 25 seconds
        said.append(estimate.add(replace(shard({}), stop=2)))
    assert said == [None, None, None, "estimate: 50.0 s in all", *[None] * 6]
    assert str(estimate) == "estimated 50.0 s, took 50.0 s"
    small = Estimate(4, 1)
    assert [small.add(replace(shard({}), stop=2)) for _ in range(2)] == [None, None]  # nothing is left


def test_utilization_is_the_share_of_time_in_which_the_actors_of_a_pool_compute():
    utilization = Utilization({("caption", "tag"): 2, ("score",): 1})
    utilization.add(104.0, shard({"caption": 3.0, "tag": 0.5, "score": 0.5}))
    # Started at 97, before the shard that was written first.
    utilization.add(110.0, shard({"caption": 5.0, "tag": 5.0, "score": 3.0}))
    # Reported after a shard that was written later.
    utilization.add(105.0, shard({"caption": 3.0, "tag": 1.5, "score": 0.5}))
    assert str(utilization) == "utilization: caption + tag 69%, score 31%"


def shard(seconds: dict[str, float], gpus: dict[str, Any] | None = None) -> ShardEntry:
    return ShardEntry("val", 0, 1, "data/val.parquet", "", 0, {}, seconds, gpus or {})


def test_memory_of_gpus_and_what_they_say_once() -> None:
    utilization = Utilization({("tag",): 1})
    use = {"gpu": "H100", "memory": 3_000_000_000, "attention": "deformops"}
    told = "tag computes on H100, deformable attention by deformops"
    assert utilization.add(10.0, shard({"tag": 4.0, "compilation": 5.0}, {"tag": use})) == [told]
    assert str(utilization) == "utilization: tag 44%; peak GPU memory: tag 3.0 GB"
    failed = {**use, "memory": 4_000_000_000, "compile_error": "no compiler"}
    note = "NOTE: tag continues without torch.compile: no compiler"
    assert utilization.add(11.0, shard({"tag": 1.0}, {"tag": failed})) == [note]
    assert utilization.add(12.0, shard({"tag": 1.0}, {"tag": use, "caption": {"gpu": "T4", "memory": 0}})) == [
        "caption computes on T4"
    ]
    assert str(utilization).endswith("; peak GPU memory: tag 4.0 GB, caption 0.0 GB")


def test_without_shards_utilization_is_zero():
    assert str(Utilization({("tag",): 1})) == "utilization: tag 0%"


def test_the_benchmark_of_the_pipeline_finds_the_line():
    line = str(Utilization({("tag",): 1}))
    assert utilization_line(f"starting Ray\n{line}\n") == line


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "usable_gpus", lambda: 1)


def recipe_with(**settings: Any) -> Recipe:
    given = {"caption": {"captioner": "blip"}, "tag": {"tagger": "tagger"}, **settings}
    return Recipe.model_validate(given)


def shared(number: int, cpus: int, **settings: Any) -> Recipe:
    recipe = recipe_with(**settings)
    return share_gpus(recipe, stages_sharing_gpus(recipe, {}), number, cpus)


def planned_on(number: int, cpus: int, **settings: Any) -> list[tuple[str, int]]:
    recipe = shared(number, cpus, **settings)
    names = ("caption", "parse", "pair", "tag") if recipe.detect.detector is None else STAGES
    names = [name for name in names if name != "ground"]
    stages = [Stub(name, getattr(recipe, name).resources) for name in names]
    planned = plan_pools(stages, 100, [node(cpus, number)])
    return [("+".join(stage.name for stage in pool.stages), pool.actors) for pool in planned]


@pytest.mark.parametrize(
    ("number", "cpus", "expected"),
    [(1, 16, (1, 15, 1)), (8, 96, (8, 88, 8)), (2, 8, (2, 6, 2)), (1, 2, (1, 1, 1)), (4, 4, (2, 2, 2))],
)
def test_each_gpu_gets_a_captioner_and_a_tagger(gpus, number: int, cpus: int, expected: tuple[int, ...]) -> None:
    assert planned_on(number, cpus) == list(zip(("caption", "parse+pair", "tag"), expected, strict=True))


def test_models_share_the_gpus_of_a_machine(gpus) -> None:
    recipe = shared(1, 16)
    assert recipe.caption.resources == recipe.tag.resources == Resources(gpus=0.5, cpus=0.5, io_threads=4)
    assert recipe.parse.resources == Resources()
    assert shared(1, 16, caption={}).tag.resources.gpus == 1
    assert shared(4, 8).tag.resources.io_threads == 2
    served = shared(1, 16, caption={"captioner": "qwen", "endpoint": "http://localhost:8000/v1"})
    assert (served.caption.resources.gpus, served.tag.resources.gpus) == (None, 1)
    for method in ("all", "overlap"):
        recipe = shared(1, 16, tag={"method": method, "tagger": "tagger"})
        assert (recipe.caption.resources.gpus, recipe.tag.resources.gpus) == (1, None)


def test_neighbours_are_one_actor(gpus) -> None:
    assert planned_on(1, 16, detect={"detector": "detr"}) == [("detect+caption", 1), ("parse+pair", 15), ("tag", 1)]


@pytest.mark.parametrize(
    "settings",
    [
        {"tag": {"tagger": "t", "resources": {"gpus": 0.25}}},
        {"tag": {"tagger": "t", "device": "cpu"}, "caption": {"captioner": "c", "resources": {"gpus": 0}}},
        {"tag": {"method": "all"}, "caption": {}},
        {"engine": {"address": "auto"}},
    ],
)
def test_what_the_recipe_says_of_gpus_is_kept(gpus, settings: dict[str, Any]) -> None:
    assert shared(2, 16, **settings) == recipe_with(**settings)


def test_the_recipe_may_set_all_else(gpus) -> None:
    recipe = shared(1, 16, tag={"tagger": "t", "resources": {"cpus": 2, "actors": 3, "io_threads": 7}})
    assert recipe.tag.resources == Resources(gpus=0.16, cpus=2, actors=3, io_threads=7)
    planned = planned_on(1, 16, tag={"tagger": "t", "resources": {"actors": 6}})
    assert planned[0][1] >= 1
    assert planned[-1] == ("tag", 6)


def test_a_run_that_began_on_cpus_stays_there(gpus) -> None:
    assert stages_sharing_gpus(recipe_with(), {}) == {"caption", "tag"}
    began_on_cpus = {"caption": {"dtype": "auto on a CPU"}, "tag": {"dtype": "auto on a CPU"}}
    assert stages_sharing_gpus(recipe_with(), began_on_cpus) == frozenset()
    detecting = recipe_with(detect={"detector": "detr"})  # a detector's number format is no part of an identity
    assert stages_sharing_gpus(detecting, began_on_cpus) == frozenset()
    assert stages_sharing_gpus(detecting, {}) == {"detect", "caption", "tag"}
    mixed = recipe_with(caption={"captioner": "blip", "device": "cpu"})
    assert stages_sharing_gpus(mixed, {"caption": {"dtype": "auto on a CPU"}}) == {"tag"}
    assert stages_sharing_gpus(recipe_with(), {"caption": {"dtype": "auto on a GPU"}}) == {"caption", "tag"}


def test_a_recipe_that_was_written_to_a_run_shares_as_before(gpus) -> None:
    again = Recipe.model_validate(recipe_with().model_dump(mode="json"))
    assert share_gpus(again, stages_sharing_gpus(again, {}), 1, 16) == shared(1, 16)


def test_a_machine_without_gpus_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "usable_gpus", lambda: 0)
    assert stages_sharing_gpus(recipe_with(), {}) == frozenset()
