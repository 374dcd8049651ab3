"""`sgpipe push`: a run to the Hugging Face hub."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sgpipe.cli.options import CalibrationFile, ExpectedPrecision, Json, MovedImages, StoredRun
from sgpipe.utils import console
from sgpipe.utils.console import count


def push(
    run: StoredRun,
    to: Annotated[str, typer.Option(help="Dataset on the hub: USER/NAME or ORGANISATION/NAME.")],
    public: Annotated[bool, typer.Option("--public", help="Make a new dataset public. Default: private.")] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Minimum confidence of relations. Default: all relations.")
    ] = None,
    calibration: CalibrationFile = None,
    precision: ExpectedPrecision = None,
    embed: Annotated[bool, typer.Option("--embed", help="Store the images in the rows.")] = False,
    images: MovedImages = None,
    json_: Json = False,
) -> None:
    """Upload a run to the Hugging Face hub as a dataset, with a dataset card.

    Exports as `export --to hf`, uploads, and deletes the export. The same command continues an interrupted upload.
    """
    import json

    _show_progress()
    from sgpipe.export.push import push_run

    pushed = push_run(
        run,
        to,
        public=public,
        threshold=threshold,
        calibration=calibration,
        precision=precision,
        embed=embed,
        images=images,
    )
    if json_:
        print(json.dumps(pushed.as_json(), indent=2))
        return
    if pushed.exported.note:
        console.progress().print(f"NOTE: {pushed.exported.note}", soft_wrap=True)
    seen = "private: only you or your organisation can see it" if pushed.private else "public"
    screen = console.output()
    screen.print(f"pushed {count(len(pushed.exported.files), 'file')} to {pushed.url} ({seen})", soft_wrap=True)
    for what, number in pushed.exported.left_out.items():
        screen.print(f"left out: {what} ({number:,})", soft_wrap=True)


def _show_progress() -> None:
    """Let huggingface_hub report the upload, which may take hours: bars in a terminal, else a line each half minute."""
    if console.QUIET in os.environ:
        return
    os.environ.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)  # set for commands that load models; read at import
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_info()
