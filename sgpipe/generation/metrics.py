"""What a run reports: notes, an estimate, JSON lines, Prometheus metrics (on Ray), and the summary
at its end.

The driver knows all of it from the shards that it commits, so the workers do nothing for it.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.text import Text

from sgpipe.errors import os_error_reason
from sgpipe.records import LEFT_OUT
from sgpipe.storage.header import GpuUse
from sgpipe.storage.losses import SOURCE_LOSSES, SOURCE_REMARKS
from sgpipe.storage.manifest import ShardEntry, Summary
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT, TOKENS, Prices, price_text
from sgpipe.utils.console import Progress, count, duration, listed, print_rows
from sgpipe.utils.numerics import numerics_changes

LAST_DIGITS = "the last digits of scores may differ"
_SECONDS = 60.0  # between two lines
_COUNTED = {
    "images": "images labelled",
    "errors": "error rows",
    "relations": "relations found",
    PROMPT: "tokens of requests to served models",
    CACHED: "those of them that the servers had cached",
    COMPLETION: "tokens of their answers",
}
# What a stage says of a GPU that could not do something.
_GPU_ERRORS = {
    "compile_error": "torch.compile",
    "graph_error": "CUDA graphs",
    "batch_error": "batches of images",
}
_SHOWN = ("errors", "boxes", "captions", "triplets", "matched_triplets", "pairs", "relations")


class RunMetrics:
    """Totals of one command, in which a run that is resumed begins at 0.

    `workers`: how many processes run which stages, which may change during the run. They are
    utilized while they compute, not while they read or wait.
    """

    def __init__(
        self,
        run: str,
        images: int,
        workers: Mapping[tuple[str, ...], int],
        *,
        on_ray: bool,
        gpus: Mapping[str, GpuUse] | None = None,
    ) -> None:
        """Begin to measure.

        Args:
            gpus: what each stage used of a GPU when the run stopped before.
        """
        self.queue = images
        self.workers = workers
        self._run = run
        self._gpus_before = gpus or {}
        self._totals = Counter(dict.fromkeys(_COUNTED, 0))
        self._seconds = Counter[str]()
        self._memory: dict[str, int] = {}
        self._notes: set[str] = set()  # that were returned
        # seconds since the epoch, without loading models
        self._first = math.inf
        self._last = -math.inf
        self._began = self._steady = time.monotonic()
        self._shards = self._measured = 0
        self._estimated: float | None = None
        self._available: dict[tuple[str, ...], float] = {}  # seconds of all workers
        self._first_workers = max(workers.values(), default=0)
        self._counters: dict[str, Any] = {}  # none but on Ray
        if on_ray:
            from ray.util import metrics

            by_run = ("run",)
            by_stage = ("run", "stage")
            self._counters = {
                name: metrics.Counter(f"sgpipe_{name}", text, by_run)
                for name, text in _COUNTED.items()
            }
            self._computed = metrics.Counter(
                "sgpipe_stage_seconds", "seconds that stages computed", by_stage
            )
            self._peaks = metrics.Gauge(
                "sgpipe_gpu_memory_bytes", "peak GPU memory of a process", by_stage
            )
            self._waiting = metrics.Gauge(
                "sgpipe_queue_images", "images that wait or are in progress", by_run
            )

    def add(self, shard: ShardEntry, written: float) -> list[str]:
        """Add a shard that was committed, `written` when (in seconds since the epoch); return what
        is new to say.
        """
        counts = {name: shard.counts.get(name, 0) for name in _COUNTED}
        counts["images"] = shard.rows
        self.queue -= shard.rows
        self._totals.update(counts)
        span = self._span
        self._first = min(self._first, written - sum(shard.seconds.values()))
        self._last = max(self._last, written)
        for names, number in self.workers.items():
            available = self._available.get(names, 0.0)
            self._available[names] = available + number * (self._span - span)
        self._seconds.update(shard.seconds)
        for stage, use in shard.gpus.items():
            self._memory[stage] = max(self._memory.get(stage, 0), use["memory"])
        self._export(shard, counts)
        notes = [*_gpu_notes(shard), *self._gpu_changes(shard), *self._estimate(shard)]
        new = [note for note in notes if note not in self._notes]
        self._notes.update(new)
        return new

    @property
    def _span(self) -> float:
        """Seconds from the first computation to the last shard."""
        return max(self._last - self._first, 0)

    def _gpu_changes(self, shard: ShardEntry) -> Iterator[str]:
        """Yield which stages compute on another GPU, or otherwise, than before the run stopped."""
        for stage, use in shard.gpus.items():
            changes = numerics_changes(self._gpus_before.get(stage, use), use)
            if changes:
                yield f"NOTE: {stage} continues with other hardware ({changes}): {LAST_DIGITS}"

    def _export(self, shard: ShardEntry, counts: Mapping[str, int]) -> None:
        """Add a shard to Prometheus' metrics, on Ray."""
        if not self._counters:
            return
        tags = {"run": self._run}
        for name, counter in self._counters.items():
            if counts[name]:
                counter.inc(counts[name], tags)
        for stage, seconds in shard.seconds.items():
            if seconds:
                self._computed.inc(seconds, tags | {"stage": stage})
        for stage in shard.gpus:
            self._peaks.set(self._memory[stage], tags | {"stage": stage})
        self._waiting.set(self.queue, tags)

    def _estimate(self, shard: ShardEntry) -> Iterator[str]:
        """Yield how long the command will take, once every worker has done its second unit."""
        now = time.monotonic()
        workers = self._first_workers
        self._shards += 1
        if self._shards <= workers:  # which load their models for their first unit
            self._steady = now
        else:
            self._measured += shard.rows
        if self._shards == 2 * workers and self.queue > 0:
            seconds_per_image = (now - self._steady) / self._measured
            self._estimated = now - self._began + self.queue * seconds_per_image
            yield f"estimate: {duration(self._estimated)} in all"

    def summary(self) -> Iterator[str]:
        """Yield the utilization of the workers of each stage, peak GPU memory, and how good the
        estimate was.
        """
        shares = []
        for names in self.workers:
            computed = sum(self._seconds[name] for name in names)
            available = max(self._available.get(names, 0.0), 1e-9)
            shares.append(f"{' + '.join(names)} {computed / available:.0%}")
        memory = ", ".join(f"{name} {peak / 1e9:.1f} GB" for name, peak in self._memory.items())
        yield f"utilization: {', '.join(shares)}" + (
            f"; peak GPU memory: {memory}" if memory else ""
        )
        if self._estimated is not None:
            yield (
                f"estimated {duration(self._estimated)}, took"
                f" {duration(time.monotonic() - self._began)}"
            )

    @contextmanager
    def written_to(self, file: Path | None, progress: Progress) -> Iterator[None]:
        """Append a line of JSON each minute and at the end. What cannot be written is warned of,
        once.
        """
        if file is None:
            yield
            return
        ended = Event()
        state = "stopped"
        warned = False

        def append(state: str) -> None:
            nonlocal warned
            elapsed = time.monotonic() - self._began
            line = {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "state": state,
                "elapsed": round(elapsed, 1),
                **self._totals,
                "images_per_second": round(self._totals["images"] / max(elapsed, 1e-9), 3),
                "queue": self.queue,
                "seconds": {
                    stage: round(seconds, 3) for stage, seconds in self._seconds.copy().items()
                },
                "gpu_memory": self._memory.copy(),
            }
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(line) + "\n")
            except OSError as error:
                if not warned:
                    progress.say(
                        f"NOTE: no metrics in {file} ({os_error_reason(error)}); the run continues"
                    )
                warned = True

        def append_now_and_then() -> None:
            while not ended.wait(_SECONDS):
                append("running")

        thread = Thread(target=append_now_and_then, daemon=True)
        thread.start()
        try:
            yield
            state = "finished"
        finally:
            ended.set()
            thread.join()
            append(state)


def _gpu_notes(shard: ShardEntry) -> Iterator[str]:
    """Yield on which GPUs stages computed, and what they did without there."""
    for stage, use in shard.gpus.items():
        attention = f", deformable attention by {use['attention']}" if "attention" in use else ""
        yield f"{stage} computes on {use['gpu']}{attention}"
        for error, feature in _GPU_ERRORS.items():
            if error in use:
                yield f"NOTE: {stage} continues without {feature}: {use[error]}"


def _problem_text(name: str) -> str:
    loss = SOURCE_LOSSES.get(name)
    return loss.text if loss else SOURCE_REMARKS.get(name, name.replace("_", " "))


def print_summary(
    summary: Summary, console: Console, *, imported: bool = False, prices: Prices | None = None
) -> None:
    """Print what a run or an import contains and cost, what was dropped, and what to do about error
    rows.
    """
    counts = summary.counts
    planned = max(summary.planned, counts["images"])
    rows = {"images": f"{counts['images']:,} of {planned:,}"}
    for name, number in _contents(summary, imported=imported).items():
        rows[name] = f"{number:,}"
    if prices is not None:
        rows["cost of tokens"] = price_text(prices.cost(counts))
    print_rows(str(summary.root), rows, console)
    if summary.parent:
        taken = f"{listed(summary.parent['reused'])} from {summary.parent['run']}"
        console.print(Text(taken), soft_wrap=True)
    total = sum(summary.seconds.values())
    if total:
        shares = ", ".join(
            f"{name} {seconds / total:.0%}" for name, seconds in summary.seconds.items()
        )
        console.print(f"time in stages: {total:.1f} s ({shares})", soft_wrap=True)
    if counts["errors"]:
        reasons = f"`sgpipe stats {summary.root}` lists the reasons"
        rows_text = count(counts["errors"], "error row")
        console.print(f"{rows_text}: {reasons}, --retry-failed tries again", soft_wrap=True)


def _contents(summary: Summary, *, imported: bool) -> dict[str, int]:
    """Return the numbers of what a run contains and of what was dropped, by their words."""
    counts = summary.counts
    if imported:
        numbers = {
            "error rows": counts["errors"],
            "objects": counts["boxes"],
            "relations": counts["relations"],
        }
    else:
        numbers = {name.replace("_", " "): counts[name] for name in _SHOWN}
        if counts["grounded"]:
            numbers["boxes of words"] = counts["grounded"]
    numbers["images with relations"] = counts["images_with_relations"]
    for name in TOKENS:
        if counts[name]:
            numbers[name.replace("_", " ")] = counts[name]
    dropped = {f"source: {_problem_text(name)}": n for name, n in summary.problems.items()}
    dropped |= {f"left out: {text}": counts[f"{name}_left_out"] for name, text in LEFT_OUT.items()}
    numbers |= {text: number for text, number in dropped.items() if number}
    numbers["shards"] = summary.shards
    return numbers
