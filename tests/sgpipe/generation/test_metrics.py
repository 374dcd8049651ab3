"""The lines of `generate --metrics`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.generation import metrics
from sgpipe.storage.manifest import Manifest, add_up

IMAGES = 6
SETTINGS = ("--set", f"source.miniworld.images={IMAGES}", "--set", "engine.unit_size=2", "--set", "engine.kind=local")


def generate(out: Path, *options: object, code: int = 0):
    done = CliRunner().invoke(app, ["generate", "--out", str(out), *SETTINGS, *map(str, options)])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, object]]]:
    """A run in two parts, with a line every few milliseconds, and again with nothing left to do."""
    folder = tmp_path_factory.mktemp("metrics")
    file = folder / "new" / "metrics.jsonl"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(metrics, "_SECONDS", 0.05)
        generate(folder / "run", "--metrics", file, "--limit", 4)
    for _ in range(2):
        generate(folder / "run", "--metrics", file)
    return folder / "run", [json.loads(line) for line in file.read_text().splitlines()]


def test_the_last_line_of_each_part_has_the_totals_of_the_manifest(run: tuple[Path, list[dict[str, object]]]) -> None:
    root, lines = run
    ends = [line for line in lines if line["state"] == "finished"]
    summary = add_up(Manifest.load(root), 0, {})
    assert [line["images"] for line in ends] == [4, 2, 0]
    for name in ("images", "errors", "relations"):
        assert sum(line[name] for line in ends) == summary.counts[name]
    for stage, seconds in summary.seconds.items():
        assert sum(line["seconds"].get(stage, 0) for line in ends) == pytest.approx(seconds)
    assert lines[-1] is ends[-1]
    assert all(line["queue"] == 0 and line["gpu_memory"] == {} for line in ends)


def test_lines_come_while_it_runs(run: tuple[Path, list[dict[str, object]]]) -> None:
    running = [line for line in run[1] if line["state"] == "running"]
    assert running[0]["queue"] + running[0]["images"] == 4
    assert [line["elapsed"] for line in running] == sorted(line["elapsed"] for line in running)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_SECONDS", 0.05)
    done = generate(tmp_path / "run", "--metrics", "/dev/full", "--limit", 2)
    assert done.stderr.count("no metrics in /dev/full (No space left on device); the run continues") == 1
    assert sum(shard.rows for shard in Manifest.load(tmp_path / "run").shards) == 2


def test_what_a_command_reads_or_owns_is_not_written_to(tmp_path: Path) -> None:
    for file in (tmp_path / "run" / "manifest.jsonl", tmp_path / "run" / "data"):
        done = generate(tmp_path / "run", "--metrics", file, "--limit", 2, code=2)
        assert "write to another place" in done.stderr
    (tmp_path / "calibration.json").write_text("{}")
    done = generate(
        tmp_path / "new",
        "--calibration",
        tmp_path / "calibration.json",
        "--metrics",
        tmp_path / "calibration.json",
        code=2,
    )
    assert "is read by this command" in done.stderr
