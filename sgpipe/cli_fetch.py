"""`sgpipe fetch`: a run in an object store, as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sgpipe import consoles


def fetch(
    store: Annotated[str, typer.Argument(help="Where a run put its shards, such as s3://bucket/labels.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; what is in it already is not fetched again.")],
) -> None:
    """Bring a run out of an object store.

    What needs its shards works then: stats, verify, export, train.
    """
    from sgpipe.progress import Progress
    from sgpipe.shards.fetch import fetch as run
    from sgpipe.shards.store import Store

    with Progress(consoles.progress()).images(None, "fetching") as advance:
        manifest = run(Store(store), out, advance)
    images = sum(shard.rows for shard in manifest.shards)
    consoles.output().print(f"{out}: {images:,} images in {len(manifest.shards):,} shards", soft_wrap=True)
