"""`sgpipe plan`: what a run will take, measured by labelling a sample of its images with the same workers."""

from __future__ import annotations

import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from sgpipe.errors import UserError
from sgpipe.generation.engine import UnitWriter, WorkUnit
from sgpipe.generation.local_engine import LocalEngine
from sgpipe.generation.run import LabellingRun, check_recipe
from sgpipe.recipe import Recipe
from sgpipe.stages.endpoint import RequestCache
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.run_folder import REQUESTS, RunFolder
from sgpipe.utils.console import Progress, count

SAMPLE, LARGEST, PATIENCE = 64, 256, 60.0  # images, if a served model needs more, and seconds after which fewer do
_UNITS_PER_WORKER = 3  # the first warms up; many small ones would count what each costs beside its images
_IN_FLIGHT = 8  # times as many images in a unit as requests are under way, as these end one by one at its end


@dataclass(frozen=True)
class Plan:
    """What labelling all images of a recipe takes.

    Attributes:
        images: of the whole. sampled: those that were labelled to know.
        start: seconds until models are loaded, since `began`. rate: images per second of all workers of this machine.
        stages: seconds per image of each stage. workers: how many processes run which stages.
        errors: the number of error rows to expect, with its 95 % interval.
        memory: bytes of the driver and of the largest worker at their peak; None: not known on a cluster.
        tokens: of requests to endpoints and their answers, if these count them.
    """

    images: int
    sampled: int
    start: float
    rate: float
    stages: Mapping[str, float]
    workers: Mapping[tuple[str, ...], int]
    row_bytes: float
    errors: tuple[int, int, int]
    memory: tuple[int, int | None]
    tokens: int = 0

    def seconds(self, machines: int = 1) -> float:
        """Return the time for all images on as many machines like this one."""
        return self.start + self.images / (self.rate * machines)

    def actors(self, workers: int) -> dict[str, int]:
        """Divide workers between the stages so that none waits for another: `resources.actors` of each, on Ray."""
        whole = sum(self.stages.values()) or 1.0
        return {name: max(1, round(workers * each / whole)) for name, each in self.stages.items()}

    def as_json(
        self, machines: int = 1, price_per_hour: float | None = None, price_per_token: float | None = None
    ) -> dict[str, Any]:
        """Return everything as plain values."""
        seconds, workers = self.seconds(machines), sum(self.workers.values())
        values = {
            "images": self.images,
            "sampled": self.sampled,
            "machines": machines,
            "seconds": seconds,
            "start_seconds": self.start,
            "images_per_second": self.rate * machines,
            "seconds_per_image": dict(self.stages),
            "bottleneck": max(self.stages, key=lambda name: self.stages[name]),
            "workers": workers,
            "balanced_actors": self.actors(workers),
            "disk_bytes": round(self.row_bytes * self.images),
            "driver_memory_bytes": self.memory[0],
            "worker_memory_bytes": self.memory[1],
            "error_rows": dict(zip(("expected", "least", "most"), self.errors, strict=True)),
            "endpoint_tokens": self.tokens,
        }
        if price_per_hour is None and price_per_token is None:
            return values
        price = (price_per_hour or 0) * machines * seconds / 3600 + (price_per_token or 0) * self.tokens
        return values | {"price": price}


def plan(recipe: Recipe, progress: Progress, images: int | None = None, began: float | None = None) -> Plan:
    """Label a seeded sample of the recipe's images, and tell from it what the whole takes. Nothing is kept.

    `images`: the most; None: 64, or as keep a served model busy. `began`: when the command did, by `time.monotonic`.

    Raises UserError, EngineError: as `generate`; all images of the sample fail.
    """
    began = began or time.monotonic()
    check_recipe(recipe)
    with tempfile.TemporaryDirectory(prefix="sgpipe-plan-") as temporary:
        folder = RunFolder(Path(temporary) / "run", None)
        with folder.lock(), closing(LabellingRun(recipe, folder, None, progress)) as run:
            run.plan()
            units = run.missing_units(retry_failed=False)
            whole = sum(unit.rows for unit in units)
            if not whole:
                raise UserError("the recipe has no images")
            longest = max(unit.rows for unit in run.start_engine(units))
            assert run.engine is not None
            workers = run.engine.workers
            served = [stage for stage in (recipe.caption, recipe.parse, recipe.pair, recipe.tag) if stage.endpoint]
            least = min(longest, _IN_FLIGHT * max((stage.requests.in_flight for stage in served), default=0))
            images = images or max(SAMPLE, min(2 * least * sum(workers.values()), LARGEST))
            sample = _sample(units, min(images, whole), sum(workers.values()), recipe.seed, least)
            if served:
                progress.say(f"asking the served model about {count(min(images, whole), 'image')}")
            done: list[tuple[float, ShardEntry]] = []
            with closing(run.engine.run(sample, run.reader(), UnitWriter(folder.storage))) as shards:
                for shard in shards:
                    done.append((time.monotonic(), shard))
                    if done[-1][0] - done[0][0] + sum(done[0][1].seconds.values()) > PATIENCE:
                        break
        found = _measured(whole, began, done, workers, isinstance(run.engine, LocalEngine))
        tokens = RequestCache(folder.private / REQUESTS).tokens()
        return replace(found, tokens=round(tokens / found.sampled * whole))


def _sample(units: Sequence[WorkUnit], images: int, workers: int, seed: int, least: int = 0) -> list[WorkUnit]:
    """Choose images at random, in small units that keep all workers busy, of at least `least` if these are enough."""
    size = max(-(-images // (_UNITS_PER_WORKER * workers)), min(least, -(-images // (2 * workers))))
    starts = [(unit, at) for unit in units for at in range(unit.start, unit.stop, size)]
    sample: list[WorkUnit] = []
    for unit, at in random.Random(seed).sample(starts, len(starts)):
        rows = min(size, unit.stop - at, images)
        sample += [WorkUnit(unit.split, at, at + rows)] if rows else []
        images -= rows
    return sample


def _measured(
    whole: int,
    began: float,
    done: Sequence[tuple[float, ShardEntry]],
    workers: Mapping[tuple[str, ...], int],
    local: bool,
) -> Plan:
    """Return what the shards of the sample tell, by the time at which each came.

    Each counts from when every worker has had its first unit. The rate is that of the workers that take longest.
    """
    number = sum(workers.values())
    steady = done[number:] or done
    rows = sum(shard.rows for _, shard in steady)
    seconds: Counter[str] = Counter()
    for _, shard in steady:
        seconds.update(shard.seconds)
    stages = {name: each / rows for name, each in seconds.items()}
    rate = min(each / max(sum(stages.get(name, 0) for name in names), 1e-9) for names, each in workers.items())
    starts = [when - began - sum(shard.seconds.values()) for when, shard in done[:number]]  # one after the other
    start = sum(starts) / len(starts)
    sampled = sum(shard.rows for _, shard in done)
    errors = sum(shard.counts.get("errors", 0) for _, shard in done)
    if errors == sampled:
        why = f"`sgpipe generate --limit {sampled}`, then `sgpipe stats`, tell why"
        raise UserError(f"all {sampled} images of the sample became error rows: {why}")
    interval = binomtest(errors, sampled).proportion_ci(method="wilson")
    expected = round(errors / sampled * whole), round(interval.low * whole), round(interval.high * whole)
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss * unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    row_bytes, memory = sum(shard.bytes for _, shard in done) / sampled, (peaks[0], peaks[1] if local else None)
    return Plan(whole, sampled, max(start, 0.0), rate, stages, workers, row_bytes, expected, memory)
