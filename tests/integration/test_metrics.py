"""What Prometheus reads of a run on Ray, by a plain HTTP client."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.storage.manifest import Manifest, add_up

_LINE = re.compile(r"ray_sgpipe_(\w+)\{(.*)\} (\S+)")


def scrape(url: str) -> Counter[str]:
    """The metrics of sgpipe, by name and stage."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    totals: Counter[str] = Counter()
    for name, labels, value in _LINE.findall(text):
        stage = re.search(r'stage="(\w+)"', labels)
        totals[f"{name} {stage[1]}" if stage else name] += float(value)
    return totals


def test_the_counters_equal_the_manifest(tmp_path: Path) -> None:
    pytest.importorskip(
        "opentelemetry.exporter.prometheus",
        reason="ray[default], of sgpipe[cluster], is not installed",
    )
    import ray

    settings = {
        "source.miniworld.images": 12,
        "engine.unit_size": 3,
        "engine.kind": "ray",
        "engine.cpus": 2,
    }
    try:
        generate(
            load_recipe("miniworld", settings), tmp_path / "run", metrics=tmp_path / "metrics.jsonl"
        )
        summary = add_up(Manifest.load(tmp_path / "run"), 0, {})
        expected = {f"{name}_total": summary.counts[name] for name in ("images", "relations")}
        expected |= {
            f"stage_seconds_total {stage}": seconds
            for stage, seconds in summary.seconds.items()
            if seconds
        }
        url = f"http://{ray.nodes()[0]['NodeManagerAddress']}:{ray.nodes()[0]['MetricsExportPort']}/metrics"
        ends = time.monotonic() + 60
        while (totals := scrape(url))["images_total"] < 12 and time.monotonic() < ends:
            time.sleep(1)
    finally:
        ray.shutdown()
    assert totals["queue_images"] == 0
    assert {name: totals[name] for name in expected} == pytest.approx(expected)
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["images"], last["state"], last["errors"]) == (
        12,
        "finished",
        summary.counts["errors"],
    )
