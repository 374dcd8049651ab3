"""What a run tells while it works: lines of JSON in a file, and on Ray metrics that Prometheus scrapes.

The driver knows all of it from the shards that it commits, so the workers do nothing for it.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

from sgpipe.errors import os_error_reason
from sgpipe.generation.engine import Utilization
from sgpipe.storage.manifest import ShardEntry
from sgpipe.utils.console import Progress

_SECONDS = 60.0  # between two lines
_COUNTED = {"images": "images labelled", "errors": "error rows", "relations": "relations found"}


class RunMetrics:
    """Totals of one command: a run that is resumed begins at 0. `use`: seconds and peak GPU memory of each stage."""

    def __init__(self, run: str, images: int, use: Utilization, *, on_ray: bool) -> None:
        self.queue, self.use, self._run = images, use, run
        self._totals, self._began = Counter(dict.fromkeys(_COUNTED, 0)), time.monotonic()
        if on_ray:
            from ray.util import metrics

            of = ("run",)
            self._counters = {name: metrics.Counter(f"sgpipe_{name}", text, of) for name, text in _COUNTED.items()}
            self._seconds = metrics.Counter("sgpipe_stage_seconds", "seconds that stages computed", (*of, "stage"))
            self._memory = metrics.Gauge("sgpipe_gpu_memory_bytes", "peak GPU memory of a process", (*of, "stage"))
            self._queue = metrics.Gauge("sgpipe_queue_images", "images that wait or are in progress", of)
        self._on_ray, self._warned = on_ray, False

    def add(self, shard: ShardEntry) -> None:
        """Add a shard that was committed, and that `use` has."""
        counts = {**shard.counts, "images": shard.rows}
        self.queue -= shard.rows
        self._totals.update({name: counts.get(name, 0) for name in _COUNTED})
        if self._on_ray:
            tags = {"run": self._run}
            for name, counter in self._counters.items():
                if counts.get(name):
                    counter.inc(counts[name], tags)
            for stage in filter(shard.seconds.get, shard.seconds):
                self._seconds.inc(shard.seconds[stage], tags | {"stage": stage})
            for stage in shard.gpus:
                self._memory.set(self.use.memory[stage], tags | {"stage": stage})
            self._queue.set(self.queue, tags)

    @contextmanager
    def written_to(self, file: Path | None, progress: Progress) -> Iterator[None]:
        """Append a line of JSON each minute and at the end. What cannot be written is warned of, once."""
        ended, state = Event(), "stopped"

        def write_now_and_then(file: Path) -> None:
            while not ended.wait(_SECONDS):
                self._append(file, "running", progress)

        thread = Thread(target=write_now_and_then, args=(file,), daemon=True)
        if file is not None:
            thread.start()
        try:
            yield
            state = "finished"
        finally:
            ended.set()
            if file is not None:
                thread.join()
                self._append(file, state, progress)

    def _append(self, file: Path, state: str, progress: Progress) -> None:
        elapsed = time.monotonic() - self._began
        values = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "state": state,
            "elapsed": round(elapsed, 1),
            **self._totals,
            "images_per_second": round(self._totals["images"] / max(elapsed, 1e-9), 3),
            "queue": self.queue,
            "seconds": {stage: round(seconds, 3) for stage, seconds in self.use.seconds.copy().items()},
            "gpu_memory": self.use.memory.copy(),
        }
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(values) + "\n")
        except OSError as error:
            if not self._warned:
                progress.say(f"NOTE: no metrics in {file} ({os_error_reason(error)}); the run continues")
            self._warned = True
