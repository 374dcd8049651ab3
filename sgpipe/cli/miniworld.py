"""`sgpipe miniworld`: synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.utils import LARGEST_SEED, console
from sgpipe.utils.console import count


def miniworld(
    out: Annotated[
        Path, declare.writes_folder("Folder for images and annotations (COCO, VG, HICO-DET).")
    ],
    number: Annotated[int, declare.option("Number of images.", "--count", min=1)] = 200,
    seed: Annotated[int, declare.option("Random seed.", min=0, max=LARGEST_SEED)] = 0,
    split: Annotated[
        Literal["train", "val", "test-compositional"], declare.option("Split to generate.")
    ] = "val",
) -> None:
    """Generate a synthetic dataset with exact ground truth.

    The folder appears complete or not at all. One that contains another
    dataset is refused.

    Examples:
      sgpipe miniworld --count 200 --out miniworld/
    """
    from sgpipe.sources.miniworld import render_dataset

    with console.Progress().images(number, "generating") as advance:
        is_new = render_dataset(out, number, seed, split, progress=lambda: advance(1, {}))
    images = count(number, "image")
    cli.show(
        f"generated {images} in {out}"
        if is_new
        else f"nothing to do: {out} already has all {images}"
    )
