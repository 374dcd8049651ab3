"""What a run or an import holds when it ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgpipe.shards.manifest import Manifest


@dataclass(frozen=True)
class Summary:
    """Counts over all committed shards; `planned` is the number of images they should hold in the end."""

    root: Path
    planned: int
    counts: Counter[str]
    seconds: Counter[str]
    problems: Counter[str]
    shards: int

    @property
    def complete(self) -> bool:
        return self.counts["images"] == self.planned

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        totals = {name: dict(getattr(self, name)) for name in ("counts", "problems", "seconds")}
        parts = {"root": str(self.root), "complete": self.complete, "planned": self.planned, "shards": self.shards}
        return parts | totals


def add_up(manifest: Manifest, planned: int, problems: Mapping[str, int]) -> Summary:
    """Add up the counts of the committed shards."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for shard in manifest.shards:
        counts.update(shard.counts)
        seconds.update(shard.seconds)
    return Summary(manifest.root, planned, counts, seconds, Counter(problems), len(manifest.shards))
