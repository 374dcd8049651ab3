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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.text import Text
from scipy.stats import binomtest

from sgpipe.errors import UserError
from sgpipe.generation.engine import Engine, LabelledUnit, UnitReader, UnitWriter, WorkUnit
from sgpipe.generation.local_engine import LocalEngine
from sgpipe.generation.resolve import resolve
from sgpipe.generation.run import LabellingRun, announce_own_code
from sgpipe.recipe import STAGES, Recipe
from sgpipe.stages.runner import COMPILATION
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.tokens import TOKENS, Prices
from sgpipe.utils.console import Progress, count, duration, print_rows

Workers: TypeAlias = Mapping[tuple[str, ...], int]  # by stages: how many processes run them
# images, if a served model needs more, and seconds after which fewer do
SAMPLE = 64
LARGEST = 256
PATIENCE = 60.0
# The first warms up; many small ones would count what each costs beside its images.
_UNITS_PER_WORKER = 3
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
        tokens: of requests to endpoints and of their answers, by `TOKENS`, if these count them.
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
    tokens: Mapping[str, int] = field(default_factory=Counter)

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
        actors = 0
        for pool, number in self.workers.items():
            actors += number * sum(on_gpu for on_gpu, _ in groupby(pool, shares.__contains__))
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
        prices: Prices | None = None,
    ) -> dict[str, Any]:
        """Return plain values for JSON."""
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
            "endpoint_tokens": {name: self.tokens.get(name, 0) for name in TOKENS},
        }
        if price_per_hour is not None or prices is not None:
            price_of_machines = (price_per_hour or 0) * machines * seconds / 3600
            price_of_tokens = prices.cost(self.tokens) if prices else 0
            values["price"] = price_of_machines + price_of_tokens
        return values


def plan(
    recipe: Recipe, progress: Progress, images: int | None = None, began: float | None = None
) -> Plan:
    """Label a seeded sample of the recipe's images, and tell from it what the whole takes. Nothing
    is kept.

    Args:
        images: the most; None: 64, or as keep a served model busy.
        began: when the command did, by `time.monotonic`.

    Raises:
        UserError, EngineError: as `generate`; all images of the sample fail.
    """
    began = began or time.monotonic()
    announce_own_code(recipe, progress)
    with tempfile.TemporaryDirectory(prefix="sgpipe-plan-") as temporary:
        folder = RunFolder(Path(temporary) / "run", None)
        engine = recipe.engine.model_copy(update={"store": None})
        run_plan = resolve(recipe.model_copy(update={"engine": engine}), folder.root)
        with folder.lock(), closing(LabellingRun(run_plan, folder, progress)) as run:
            run.open()
            units = run.missing_units(retry_failed=False)
            total = sum(unit.rows for unit in units)
            if not total:
                raise UserError("the recipe has no images")
            longest = max(unit.rows for unit in run.start_engine(units))
            assert run.engine is not None
            workers = sum(run.engine.workers.values())
            in_flight = max(run_plan.stages.section(name).requests_in_flight for name in STAGES)
            smallest = min(longest, _IN_FLIGHT * in_flight)
            images = images or max(SAMPLE, min(2 * smallest * workers, LARGEST))
            sample = _sample(units, min(images, total), workers, run_plan.stages.seed, smallest)
            if in_flight:
                progress.say(f"asking the served model about {count(min(images, total), 'image')}")
            done = list(_label(run.engine, sample, run.reader(), UnitWriter(folder.storage)))
        is_local = isinstance(run.engine, LocalEngine)
        return _measured(total, began, done, run.engine.workers, run.engine.gpus, is_local=is_local)


@dataclass(frozen=True)
class _Labelled:
    """A shard of the sample, and when it came."""

    time: float
    shard: ShardEntry

    @property
    def computed(self) -> float:
        """For how many seconds."""
        return sum(self.shard.seconds.values())


def _label(
    engine: Engine, units: Sequence[WorkUnit], reader: UnitReader, writer: UnitWriter
) -> Iterator[_Labelled]:
    """Yield the shards of a sample, until patience ends."""
    ends = math.inf
    with closing(engine.run(units, reader, writer)) as done:
        for shard in (unit.shard for unit in done if isinstance(unit, LabelledUnit)):
            labelled = _Labelled(time.monotonic(), shard)
            if math.isinf(ends):
                ends = labelled.time - labelled.computed + PATIENCE
            yield labelled
            if labelled.time > ends:
                return


def _sample(
    units: Sequence[WorkUnit], images: int, workers: int, seed: int, smallest: int = 0
) -> list[WorkUnit]:
    """Choose images at random, in small units that keep all workers busy, of at least `smallest` if
    these are enough.
    """
    even = math.ceil(images / (_UNITS_PER_WORKER * workers))
    size = max(even, min(smallest, math.ceil(images / (2 * workers))))
    starts: list[tuple[WorkUnit, int]] = []
    for unit in units:
        starts += [(unit, start) for start in range(unit.start, unit.stop, size)]
    sample: list[WorkUnit] = []
    for unit, start in random.Random(seed).sample(starts, len(starts)):
        rows = min(size, unit.stop - start, images)
        if rows:
            sample.append(WorkUnit(unit.split, start, start + rows))
        images -= rows
    return sample


def _measured(
    total: int,
    began: float,
    done: Sequence[_Labelled],
    workers: Workers,
    gpus: int,
    *,
    is_local: bool,
) -> Plan:
    """Return what the shards of a sample tell about as many images as there are in `total`, once
    every worker has had its first unit.
    """
    number = sum(workers.values())
    shards = [labelled.shard for labelled in done]
    steady = shards[number:] or shards
    sampled = sum(shard.rows for shard in shards)
    counts = _sum(shard.counts for shard in shards)
    seconds = _sum(shard.seconds for shard in steady)
    if is_local:  # each worker runs all stages that took time
        del seconds[COMPILATION]
        workers = {tuple(seconds): number}
    rows = sum(shard.rows for shard in steady)
    stages = {name: seconds[name] / rows for name in chain.from_iterable(workers)}
    return Plan(
        images=total,
        sampled=sampled,
        start=_start_seconds(done[:number], began),
        stages=stages,
        workers=workers,
        utilization=_utilization(stages, steady),
        gpus=gpus,
        row_bytes=sum(shard.bytes for shard in shards) / sampled,
        errors=_expected_errors(counts["errors"], sampled, total),
        memory=_peak_memory(is_local=is_local),
        tokens={name: round(counts[name] / sampled * total) for name in TOKENS},
    )


def _sum(parts: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return the sum of counts, or of seconds, by name."""
    total = Counter[str]()
    for part in parts:
        total.update(part)
    return total


def _start_seconds(first: Sequence[_Labelled], began: float) -> float:
    """Return when the workers began with their first units, on average, since `began`."""
    starts = [labelled.time - began - labelled.computed for labelled in first]
    return max(sum(starts) / len(starts), 0.0)


def _utilization(stages: Iterable[str], shards: Sequence[ShardEntry]) -> dict[str, float | None]:
    """Return the share of the time that its GPU computed, of each stage that used one; None: not
    measured.
    """
    utilization: dict[str, float | None] = {}
    for name in stages:
        uses = [shard.gpus[name] for shard in shards if name in shard.gpus]
        if uses:
            shares = [use["utilization"] for use in uses if use.get("utilization") is not None]
            utilization[name] = sum(shares) / len(shares) if shares else None
    return utilization


def _expected_errors(errors: int, sampled: int, total: int) -> tuple[int, int, int]:
    """Return the number of error rows to expect, with its 95 % interval.

    Raises:
        UserError: there is nothing else.
    """
    if errors == sampled:
        why = f"`sgpipe generate --limit {sampled}`, then `sgpipe stats`, tell why"
        raise UserError(f"all {sampled} images of the sample became error rows: {why}")
    interval = binomtest(errors, sampled).proportion_ci(method="wilson")
    shares = (errors / sampled, interval.low, interval.high)
    expected, lowest, highest = (round(share * total) for share in shares)
    return expected, lowest, highest


def _peak_memory(*, is_local: bool) -> tuple[int, int | None]:
    """Return the peaks of this process and of its largest worker, if that is on this machine."""
    unit = 1 if sys.platform == "darwin" else 1024
    driver = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    return driver, worker if is_local else None


def print_plan(values: Mapping[str, Any], console: Console) -> None:
    """Print what `Plan.as_json` says."""
    gpus = f", {count(values['gpus'], 'GPU')} each" if values["gpus"] else ""
    machines = f"{count(values['machines'], 'machine')} like this{gpus}"
    memory = f"driver {values['driver_memory_bytes'] / 1e9:.1f} GB"
    worker = values["worker_memory_bytes"]
    if worker is not None:
        memory += f", a worker {worker / 1e9:.1f} GB"
    rows = {
        "images": f"{values['images']:,}",
        f"time on {machines}": duration(values["seconds"]),
        "images per second": f"{values['images_per_second']:.3g}",
        "time until models are loaded": duration(values["start_seconds"]),
        "seconds per image": _stage_times(values),
        "slowest stage": values["bottleneck"],
        "disk": f"{values['disk_bytes'] / 1e6:,.1f} MB",
        "memory": memory,
        "error rows": "about {expected:,} ({least:,} to {most:,})".format(**values["error_rows"]),
    }
    if worker is None:
        rows["balanced actors"] = ", ".join(
            f"{name} {number}" for name, number in values["balanced_actors"].items()
        )
    for name, number in values["endpoint_tokens"].items():
        if number:
            rows[name.replace("_", " ")] = f"{number:,}"
    if "price" in values:
        rows["price"] = f"{values['price']:,.2f}"
    print_rows(f"plan, from {count(values['sampled'], 'image')}", rows, console)
    console.print(Text(f"GPUs: {values['gpu_advice']}"), soft_wrap=True)


def _stage_times(values: Mapping[str, Any]) -> str:
    """Return the seconds per image of each stage, in words."""
    times: list[str] = []
    for name, seconds in values["seconds_per_image"].items():
        place = " on GPUs" if name in values["gpu_utilization"] else ""
        times.append(f"{name} {seconds:.3g}{place}")
    return ", ".join(times)
