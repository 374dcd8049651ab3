"""What a run tells: utilization, an estimate, the use of GPUs, and the lines of `generate
--metrics`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.bench_pipeline import utilization_line
from sgpipe.cli.main import app
from sgpipe.generation import metrics
from sgpipe.generation import run as generation_run
from sgpipe.generation.metrics import RunMetrics
from sgpipe.recipe import load_recipe
from sgpipe.stages.tag.stage import TagStage
from sgpipe.storage.manifest import Manifest, ShardEntry, add_up
from tests.sgpipe.generation.in_process import label, without_ray
from tests.values import values_of

IMAGES = 6
SETTINGS = (
    "--set",
    f"source.miniworld.images={IMAGES}",
    "--set",
    "engine.unit_size=2",
    "--set",
    "engine.kind=local",
)


def shard(seconds: dict[str, float], rows: int = 1) -> ShardEntry:
    return ShardEntry("val", 0, rows, "data/val.parquet", "", 0, {}, seconds)


def meter(images: int, *workers: tuple[tuple[str, ...], int]) -> RunMetrics:
    return RunMetrics("run", images, dict(workers), on_ray=False)


def test_an_estimate_is_made_after_two_units_of_each_worker(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: clock[0])
    run = meter(20, (("tag",), 2))
    estimates = []
    # two workers, which load models for 25 seconds
    for clock[0] in (
        30.0,
        30,
        35,
        35,
        40,
        40,
        45,
        45,
        50,
        50,
    ):
        estimates.append(run.add(shard({}, 2), 0.0))
    assert estimates == [[], [], [], ["estimate: 50.0 s in all"], *[[]] * 6]
    assert list(run.summary())[1] == "estimated 50.0 s, took 50.0 s"
    small = meter(4, (("tag",), 1))
    assert [small.add(shard({}, 2), 0.0) for _ in range(2)] == [[], []]  # nothing is left


def test_utilization_is_the_share_of_time_in_which_the_actors_of_a_pool_compute():
    run = meter(9, (("caption", "tag"), 2), (("score",), 1))
    run.add(shard({"caption": 3.0, "tag": 0.5, "score": 0.5}), 104.0)
    # Started at 97, before the shard that was written first.
    run.add(shard({"caption": 5.0, "tag": 5.0, "score": 3.0}), 110.0)
    # Reported after a shard that was written later.
    run.add(shard({"caption": 3.0, "tag": 1.5, "score": 0.5}), 105.0)
    line = "utilization: caption + tag 69%, score 31%"
    assert list(run.summary()) == [line]
    assert utilization_line(f"starting Ray\n{line}\n") == line


def test_gpus_are_in_the_log_and_the_manifest(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
):
    """The tag stage is told that it has one."""
    use = {
        "gpu": "H100",
        "attention": "grid_sample",
        "compile_error": "no g++",
        "graph_error": "old driver",
    }
    uses = [use | {"memory": memory} for memory in (2_500_000_000, 4_000_000_000, 3_000_000_000)]
    now = iter(uses)
    monkeypatch.setattr(TagStage, "gpu_use", lambda stage: next(now) | {"compilation": 40.0})
    recipe = load_recipe("miniworld", {"source.miniworld.images": IMAGES, "engine.unit_size": 2})
    _, lines = label(recipe, tmp_path / "out")
    assert lines.count("tag computes on H100, deformable attention by grid_sample") == 1
    assert lines.count("NOTE: tag continues without torch.compile: no g++") == 1
    assert lines.count("NOTE: tag continues without CUDA graphs: old driver") == 1
    assert any("; peak GPU memory: tag 4.0 GB" in line for line in lines)
    shards = Manifest.load(tmp_path / "out").shards
    assert values_of(shards, "gpus") == [{"tag": use} for use in uses]
    assert [shard_entry.seconds.get("compilation", 0.0) for shard_entry in shards] == [
        40.0,
        0.0,
        0.0,
    ]


def test_a_run_that_resumes_with_other_software_or_another_gpu_says_so(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
):
    use = {"gpu": "H100", "memory": 1}
    monkeypatch.setattr(TagStage, "gpu_use", lambda stage: use.copy())
    images = {"source.miniworld.images": IMAGES, "engine.unit_size": 3}
    first = load_recipe("miniworld", {**images, "limit": 3})
    monkeypatch.setattr(generation_run, "package_versions", lambda: {"torch": "1.0"})
    _, lines = label(first, tmp_path / "out")
    assert not [line for line in lines if "then" in line]
    assert Manifest.load(tmp_path / "out").run["software"] == {"torch": "1.0"}
    use["gpu"] = "A100"
    monkeypatch.setattr(generation_run, "package_versions", lambda: {"torch": "2.0"})
    _, lines = label(load_recipe("miniworld", images), tmp_path / "out")
    digits = "the last digits of scores may differ"
    assert (
        f"NOTE: the run continues with other software (torch 1.0 then, 2.0 now): {digits}" in lines
    )
    assert f"NOTE: tag continues with other hardware (GPU H100 then, A100 now): {digits}" in lines


def generate(out: Path, *options: object) -> str:
    done = CliRunner().invoke(app, ["generate", "--out", str(out), *SETTINGS, *map(str, options)])
    assert done.exit_code == 0, done.output
    return done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """A run in two parts, with a line every few milliseconds, and again with nothing left to do."""
    folder = tmp_path_factory.mktemp("metrics")
    file = folder / "new" / "metrics.jsonl"
    with without_ray():
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(metrics, "_SECONDS", 0.01)
            generate(folder / "run", "--metrics", file, "--limit", 4)
        for _ in range(2):
            generate(folder / "run", "--metrics", file)
    return folder / "run", list(map(json.loads, file.read_text().splitlines()))


def test_the_last_line_of_each_part_has_the_totals_of_the_manifest(
    run: tuple[Path, list[dict[str, object]]],
) -> None:
    root, lines = run
    ends = [line for line in lines if line["state"] == "finished"]
    summary = add_up(Manifest.load(root), 0, {})
    assert values_of(ends, "images") == [4, 2, 0]
    for name in ("images", "errors", "relations"):
        assert sum(line[name] for line in ends) == summary.counts[name]
    for stage, seconds in summary.seconds.items():
        assert sum(line["seconds"].get(stage, 0) for line in ends) == pytest.approx(seconds)
    assert lines[-1] is ends[-1]
    assert all(line["queue"] == 0 and line["gpu_memory"] == {} for line in ends)
    # lines that come while it runs
    running = [line for line in lines if line["state"] == "running"]
    assert running[0]["queue"] + running[0]["images"] == 4
    assert values_of(running, "elapsed") == sorted(values_of(running, "elapsed"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_one_warning(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "_SECONDS", 0.01)
    output = generate(tmp_path / "run", "--metrics", "/dev/full", "--limit", 2)
    assert output.count("no metrics in /dev/full (No space left on device); the run continues") == 1
    assert sum(values_of(Manifest.load(tmp_path / "run").shards, "rows")) == 2
