"""`sgpipe compact`: a finished run in large shards."""

from __future__ import annotations

from sgpipe.cli import options as cli
from sgpipe.utils import console
from sgpipe.utils.console import count


def compact(run: cli.StoredRun, json_: cli.Json = False) -> None:
    """Rewrite a finished run in large shards, which take less room and are read faster.

    The rows and their order stay as they are. The manifest keeps which shards came from which.

    Examples:
      sgpipe compact coco-relations/
      sgpipe compact s3://bucket/labels
    """
    from sgpipe.generation.compacting import compact_run

    compaction = compact_run(run, console.Progress())
    if cli.printed_json(json_, compaction.as_json()):
        return
    if not compaction.written:
        cli.show(f"nothing left to do: {run} is compacted")
        return
    before = f"{count(compaction.shards_before, 'shard')} ({compaction.bytes_before:,} bytes)"
    after = f"{count(compaction.shards_after, 'shard')} ({compaction.bytes_after:,} bytes)"
    cli.show(f"{run}: {before} are now {after}")
