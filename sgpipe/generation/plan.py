"""`sgpipe plan`: what a run will take, measured by labelling a sample of its images with the same
workers.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.text import Text
from scipy.stats import binomtest

from sgpipe.errors import UserError
from sgpipe.generation.engine import LocalEngine, UnitWriter, WorkUnit
from sgpipe.generation.resolve import resolve
from sgpipe.generation.run import LabellingRun
from sgpipe.recipe import STAGES, Recipe
from sgpipe.stages.base import COMPILATION
from sgpipe.stages.endpoint import RequestCache
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.run_folder import REQUESTS, RunFolder
from sgpipe.utils.console import Progress, count, duration, print_rows

Workers: TypeAlias = Mapping[tuple[str, ...], int]  # by stages: how many processes run them
# images, if a served model needs more, and seconds after which fewer do
SAMPLE = 64
LARGEST = 256
PATIENCE = 60.0
_UNITS_PER_WORKER = (
    3  # the first warms up; many small ones would count what each costs beside its images
)
_UTILIZED = 0.85  # share of the time from which a GPU has enough to do
# times as many images in a unit as requests are under way, as these end one by one at its end
_IN_FLIGHT = 8


@dataclass(frozen=True)
class Plan:
    """What labelling all images of a recipe takes.

    Attributes:
        images: of the whole. sampled: those that were labelled to know.
        start: seconds until models are loaded, since `began`.
        stages: seconds per image of each stage.
        utilization: of its GPU while a stage computes, for each stage that computes on one; None:
            not measured.
        gpus: how many the workers share.
        errors: the number of error rows to expect, with its 95 % interval.
        memory: bytes of the driver and of the largest worker at their peak; None: not known on a
            cluster.
        tokens: of requests to endpoints and their answers, if these count them.
    """

    images: int
    sampled: int
    start: float
    stages: Mapping[str, float]
    workers: Workers
    utilization: Mapping[str, float | None]
    gpus: int
    row_bytes: float
    errors: tuple[int, int, int]
    memory: tuple[int, int | None]
    tokens: int = 0

    def with_gpus(self, gpus: int) -> Plan:
        """Return the plan if this machine had as many GPUs, and cores enough for them; the same if
        it uses none.
        """
        grown = {
            pool: max(1, round(self.workers[pool] * gpus / self.gpus)) for pool in self._on_gpus()
        }
        return replace(self, workers={**self.workers, **grown}, gpus=gpus) if grown else self

    def seconds(self, machines: int = 1) -> float:
        """Return the time for all images on as many machines like this one."""
        return self.start + self.images * self._seconds(self._slowest()) / machines

    def actors(self) -> dict[str, int]:
        """Return `resources.actors` of each stage, on Ray, by which none waits: with the workers or
        the GPUs of now.
        """
        pace = sum(self.workers.values()) / (sum(self.stages.values()) or 1.0)
        spare = 0.0
        pools = self._on_gpus()
        if pools:
            pace = 1 / max(map(self._seconds, pools))
            spare = 0.4
        return {name: max(1, round(pace * stage + spare)) for name, stage in self.stages.items()}

    def advice(self) -> str:
        """Return how many actors should share a GPU, by how much of the time it computes."""
        slowest = self._slowest()
        shares = self.utilization
        if not shares:
            return "not measured: no stage of the sample computed on one"
        if slowest not in self._on_gpus():
            return f"waiting for {' + '.join(slowest)}: more cores help, more actors per GPU do not"
        if None in shares.values():
            return (
                "utilization not measured: it takes nvidia-ml-py (sgpipe[gpu]) and a sample of some"
                " seconds"
            )
        computed = sum((shares.get(name) or 0) * self.stages[name] for name in slowest)
        utilized = computed / self.workers[slowest] / self._seconds(slowest)
        if utilized >= _UTILIZED:
            return f"utilized {utilized:.0%}: enough actors of each stage per GPU"
        actors = sum(
            n * sum(on for on, _ in groupby(pool, shares.__contains__))
            for pool, n in self.workers.items()
        )
        share = math.floor(50 * self.gpus / actors) / 100  # half of that of an actor now
        sets = " ".join(f"--set {name}.resources.gpus={share:g}" for name in shares)
        return (
            f"utilized {utilized:.0%}: switch CUDA's MPS on (nvidia-cuda-mps-control -d) and plan"
            f" again with {sets}"
        )

    def _on_gpus(self) -> list[tuple[str, ...]]:
        return [pool for pool in self.workers if self.utilization.keys() & set(pool)]

    def _seconds(self, pool: tuple[str, ...]) -> float:
        return max(sum(self.stages[name] for name in pool), 1e-9) / self.workers[pool]

    def _slowest(self) -> tuple[str, ...]:
        return max(self.workers, key=self._seconds)

    def as_json(
        self,
        machines: int = 1,
        price_per_hour: float | None = None,
        price_per_token: float | None = None,
    ) -> dict[str, Any]:
        seconds = self.seconds(machines)
        slowest = self._slowest()
        values = {
            "images": self.images,
            "sampled": self.sampled,
            "machines": machines,
            "gpus": self.gpus,
            "seconds": seconds,
            "start_seconds": self.start,
            "images_per_second": machines / self._seconds(slowest),
            "seconds_per_image": dict(self.stages),
            "bottleneck": max(slowest, key=self.stages.__getitem__),
            "workers": sum(self.workers.values()),
            "balanced_actors": self.actors(),
            "gpu_utilization": dict(self.utilization),
            "gpu_advice": self.advice(),
            "disk_bytes": round(self.row_bytes * self.images),
            "driver_memory_bytes": self.memory[0],
            "worker_memory_bytes": self.memory[1],
            "error_rows": dict(zip(("expected", "least", "most"), self.errors, strict=True)),
            "endpoint_tokens": self.tokens,
        }
        if price_per_hour is None and price_per_token is None:
            return values
        price = (price_per_hour or 0) * machines * seconds / 3600 + (
            price_per_token or 0
        ) * self.tokens
        return values | {"price": price}


def plan(
    recipe: Recipe, progress: Progress, images: int | None = None, began: float | None = None
) -> Plan:
    """Label a seeded sample of the recipe's images, and tell from it what the whole takes. Nothing
    is kept.

    `images`: the most; None: 64, or as keep a served model busy. `began`: when the command did, by
    `time.monotonic`.

    Raises UserError, EngineError: as `generate`; all images of the sample fail.
    """
    began = began or time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sgpipe-plan-") as temporary:
        folder = RunFolder(Path(temporary) / "run", None)
        engine = recipe.engine.model_copy(update={"store": None})
        run_plan = resolve(recipe.model_copy(update={"engine": engine}), folder.root)
        with folder.lock(), closing(LabellingRun(run_plan, folder, progress)) as run:
            run.open()
            units = run.missing_units(retry_failed=False)
            whole = sum(unit.rows for unit in units)
            if not whole:
                raise UserError("the recipe has no images")
            longest = max(unit.rows for unit in run.start_engine(units))
            assert run.engine is not None
            workers = run.engine.workers
            in_flight = max(run_plan.stages.section(name).requests_in_flight for name in STAGES)
            least = min(longest, _IN_FLIGHT * in_flight)
            images = images or max(SAMPLE, min(2 * least * sum(workers.values()), LARGEST))
            sample = _sample(
                units, min(images, whole), sum(workers.values()), run_plan.stages.seed, least
            )
            if in_flight:
                progress.say(f"asking the served model about {count(min(images, whole), 'image')}")
            done: list[tuple[float, ShardEntry]] = []
            with closing(
                run.engine.run(sample, run.reader(), UnitWriter(folder.storage))
            ) as shards:
                for shard in shards:
                    done.append((time.monotonic(), shard))
                    if done[-1][0] - done[0][0] + sum(done[0][1].seconds.values()) > PATIENCE:
                        break
        found = _measured(
            whole, began, done, workers, run.engine.gpus, isinstance(run.engine, LocalEngine)
        )
        tokens = RequestCache(folder.private / REQUESTS).tokens()
        return replace(found, tokens=round(tokens / found.sampled * whole))


def _sample(
    units: Sequence[WorkUnit], images: int, workers: int, seed: int, least: int = 0
) -> list[WorkUnit]:
    """Choose images at random, in small units that keep all workers busy, of at least `least` if
    these are enough.
    """
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
    workers: Workers,
    gpus: int,
    local: bool,
) -> Plan:
    """Return what the shards tell, with the time at which each came, once every worker has had its
    first unit.
    """
    number = sum(workers.values())
    steady = done[number:] or done
    rows = sum(shard.rows for _, shard in steady)
    seconds: Counter[str] = Counter()
    for _, shard in steady:
        seconds.update(shard.seconds)
    if local:
        workers = {tuple(name for name in seconds if name != COMPILATION): number}
    stages = {name: seconds[name] / rows for name in chain.from_iterable(workers)}
    utilization: dict[str, float | None] = {}
    for name in stages:
        uses = [shard.gpus[name].get("utilization") for _, shard in steady if name in shard.gpus]
        if uses:
            known = [share for share in uses if share is not None]
            utilization[name] = sum(known) / len(known) if known else None
    starts = [
        when - began - sum(shard.seconds.values()) for when, shard in done[:number]
    ]  # one after the other
    start = sum(starts) / len(starts)
    sampled = sum(shard.rows for _, shard in done)
    errors = sum(shard.counts.get("errors", 0) for _, shard in done)
    if errors == sampled:
        why = f"`sgpipe generate --limit {sampled}`, then `sgpipe stats`, tell why"
        raise UserError(f"all {sampled} images of the sample became error rows: {why}")
    interval = binomtest(errors, sampled).proportion_ci(method="wilson")
    expected = (
        round(errors / sampled * whole),
        round(interval.low * whole),
        round(interval.high * whole),
    )
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [
        resource.getrusage(who).ru_maxrss * unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    row_bytes = sum(shard.bytes for _, shard in done) / sampled
    memory = (peaks[0], peaks[1] if local else None)
    start = max(start, 0.0)
    return Plan(
        whole, sampled, start, stages, workers, utilization, gpus, row_bytes, expected, memory
    )


def print_plan(values: Mapping[str, Any], console: Console) -> None:
    """Print what `Plan.as_json` says."""
    on = dict.fromkeys(values["gpu_utilization"], " on GPUs")
    worker = values["worker_memory_bytes"]
    gpus = f", {count(values['gpus'], 'GPU')} each" if values["gpus"] else ""
    memory = "" if worker is None else f", a worker {worker / 1e9:.1f} GB"
    seconds = ", ".join(
        f"{name} {each:.3g}{on.get(name, '')}" for name, each in values["seconds_per_image"].items()
    )
    rows = {
        "images": f"{values['images']:,}",
        f"time on {count(values['machines'], 'machine')} like this{gpus}": duration(
            values["seconds"]
        ),
        "images per second": f"{values['images_per_second']:.3g}",
        "time until models are loaded": duration(values["start_seconds"]),
        "seconds per image": seconds,
        "slowest stage": values["bottleneck"],
        "disk": f"{values['disk_bytes'] / 1e6:,.1f} MB",
        "memory": f"driver {values['driver_memory_bytes'] / 1e9:.1f} GB{memory}",
        "error rows": "about {expected:,} ({least:,} to {most:,})".format(**values["error_rows"]),
    }
    if worker is None:
        rows["balanced actors"] = ", ".join(
            f"{name} {number}" for name, number in values["balanced_actors"].items()
        )
    if values["endpoint_tokens"]:
        rows["tokens of the endpoint"] = f"{values['endpoint_tokens']:,}"
    if "price" in values:
        rows["price"] = f"{values['price']:,.2f}"
    print_rows(f"plan, from {count(values['sampled'], 'image')}", rows, console)
    console.print(Text(f"GPUs: {values['gpu_advice']}"), soft_wrap=True)
