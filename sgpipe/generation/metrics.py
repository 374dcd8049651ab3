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
from sgpipe.storage.losses import SOURCE_LOSSES, SOURCE_REMARKS
from sgpipe.storage.manifest import ShardEntry, Summary
from sgpipe.utils.console import Progress, count, duration, listed, print_rows

_SECONDS = 60.0  # between two lines
_COUNTED = {"images": "images labelled", "errors": "error rows", "relations": "relations found"}


_SHOWN = ("errors", "boxes", "captions", "triplets", "matched_triplets", "pairs", "relations")


class RunMetrics:
    """Totals of one command, in which a run that is resumed begins at 0.

    `workers`: how many processes run which stages. They are utilized while they compute, not while
    they read or wait.
    """

    def __init__(
        self, run: str, images: int, workers: Mapping[tuple[str, ...], int], *, on_ray: bool
    ) -> None:
        self.queue = images
        self.workers = workers
        self._run = run
        self._totals = Counter(dict.fromkeys(_COUNTED, 0))
        self._seconds = Counter[str]()
        self._memory: dict[str, int] = {}
        self._told: set[str] = set()
        # seconds since the epoch, without loading models
        self._first = math.inf
        self._last = -math.inf
        self._began = self._steady = time.monotonic()
        self._shards = self._measured = 0
        self._estimated: float | None = None
        self._counters: dict[str, Any] = {}  # none but on Ray
        if on_ray:
            from ray.util import metrics

            of = ("run",)
            of_stage = ("run", "stage")
            self._counters = {
                name: metrics.Counter(f"sgpipe_{name}", text, of) for name, text in _COUNTED.items()
            }
            self._computed = metrics.Counter(
                "sgpipe_stage_seconds", "seconds that stages computed", of_stage
            )
            self._peaks = metrics.Gauge(
                "sgpipe_gpu_memory_bytes", "peak GPU memory of a process", of_stage
            )
            self._waiting = metrics.Gauge(
                "sgpipe_queue_images", "images that wait or are in progress", of
            )

    def add(self, shard: ShardEntry, written: float) -> list[str]:
        """Add a shard that was committed, `written` when (in seconds since the epoch); return what
        is new to say.
        """
        counts = {**shard.counts, "images": shard.rows}
        self.queue -= shard.rows
        self._totals.update({name: counts.get(name, 0) for name in _COUNTED})
        self._first = min(self._first, written - sum(shard.seconds.values()))
        self._last = max(self._last, written)
        self._seconds.update(shard.seconds)
        notes: list[str] = []
        for stage, use in shard.gpus.items():
            self._memory[stage] = max(self._memory.get(stage, 0), use["memory"])
            attention = (
                f", deformable attention by {use['attention']}" if "attention" in use else ""
            )
            notes.append(f"{stage} computes on {use['gpu']}{attention}")
            for error, means in (
                ("compile_error", "torch.compile"),
                ("graph_error", "CUDA graphs"),
            ):
                if error in use:
                    notes.append(f"NOTE: {stage} continues without {means}: {use[error]}")
        if self._counters:
            tags = {"run": self._run}
            for name, counter in self._counters.items():
                if counts.get(name):
                    counter.inc(counts[name], tags)
            for stage in filter(shard.seconds.get, shard.seconds):
                self._computed.inc(shard.seconds[stage], tags | {"stage": stage})
            for stage in shard.gpus:
                self._peaks.set(self._memory[stage], tags | {"stage": stage})
            self._waiting.set(self.queue, tags)
        now = time.monotonic()
        workers = max(self.workers.values())
        self._shards += 1
        if self._shards <= workers:  # which load their models for their first unit
            self._steady = now
        else:
            self._measured += shard.rows
        if self._shards == 2 * workers and self.queue > 0:
            self._estimated = now - self._began + self.queue * (now - self._steady) / self._measured
            notes.append(f"estimate: {duration(self._estimated)} in all")
        new = [note for note in notes if note not in self._told]
        self._told.update(new)
        return new

    def summary(self) -> Iterator[str]:
        """Yield the utilization of the workers of each stage, peak GPU memory, and how good the
        estimate was.
        """
        elapsed = max(self._last - self._first, 1e-9)
        shares = []
        for names, number in self.workers.items():
            computed = sum(self._seconds[name] for name in names)
            shares.append(f"{' + '.join(names)} {computed / (number * elapsed):.0%}")
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


def _problem_text(name: str) -> str:
    loss = SOURCE_LOSSES.get(name)
    return loss.text if loss else SOURCE_REMARKS.get(name, name.replace("_", " "))


def print_summary(summary: Summary, console: Console, *, imported: bool = False) -> None:
    """Print what a run or an import contains, what was dropped, and what to do about error rows."""
    counts, rows = (
        summary.counts,
        {
            "images": (
                f"{summary.counts['images']:,} of"
                f" {max(summary.planned, summary.counts['images']):,}"
            )
        },
    )
    shown = {name.replace("_", " "): counts[name] for name in _SHOWN}
    shown |= {"boxes of words": counts["grounded"]} if counts["grounded"] else {}
    if imported:
        shown = {
            "error rows": counts["errors"],
            "objects": counts["boxes"],
            "relations": counts["relations"],
        }
    shown["images with relations"] = counts["images_with_relations"]
    dropped = {
        f"source: {_problem_text(name)}": number for name, number in summary.problems.items()
    }
    dropped |= {f"left out: {what}": counts[f"{name}_left_out"] for name, what in LEFT_OUT.items()}
    shown |= {what: number for what, number in dropped.items() if number} | {
        "shards": summary.shards
    }
    print_rows(
        str(summary.root), rows | {name: f"{number:,}" for name, number in shown.items()}, console
    )
    if summary.parent:
        console.print(
            Text(f"{listed(summary.parent['reused'])} from {summary.parent['run']}"), soft_wrap=True
        )
    total = sum(summary.seconds.values())
    if total:
        shares = ", ".join(
            f"{name} {seconds / total:.0%}" for name, seconds in summary.seconds.items()
        )
        console.print(f"time in stages: {total:.1f} s ({shares})", soft_wrap=True)
    errors = counts["errors"]
    if errors:
        reasons = f"`sgpipe stats {summary.root}` lists the reasons"
        console.print(
            f"{count(errors, 'error row')}: {reasons}, --retry-failed tries again", soft_wrap=True
        )
