"""`sgpipe score`: what models other than the tagger say about the relations of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from sgpipe.cli.options import Device, Json, MovedImages, StoredRun, reads_later, reads_model, writes_folder
from sgpipe.errors import UserError, existing_model
from sgpipe.utils import console
from sgpipe.utils.console import count

_CLIP = "ViT-B-32"


def score(
    run: StoredRun,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the shards with scores; an unfinished scoring is resumed.", callback=writes_folder
        ),
    ],
    by: Annotated[
        Literal["clip", "vlm"],
        typer.Option(help="clip: how well the text of a relation fits. vlm: a model is asked about each relation."),
    ] = "clip",
    model: Annotated[
        str | None,
        typer.Option(
            help="clip: open_clip name, hf-hub:ID, hub id or folder; default ViT-B-32. vlm: hub id or folder of an "
            "image-text-to-text model; with --endpoint its name there.",
            callback=reads_later,
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="clip: weights of a named model: file or tag.", callback=reads_model)
    ] = None,
    contrasts: Annotated[int, typer.Option(min=1, help="clip: number of other predicates to compare with.")] = 8,
    endpoint: Annotated[
        str | None, typer.Option(help="vlm: URL of a server with the OpenAI chat API that returns log-probabilities.")
    ] = None,
    images: MovedImages = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Score how well relations fit their images: by CLIP, or as a second opinion by a model that is asked.

    `sgpipe stats` and `sgpipe view` show the scores. A run can have both.
    """
    if by == "vlm":
        if weights is not None:
            raise UserError("--weights is for --by clip")
        counts = _by_vlm(run, out, model, endpoint, images, device)
    elif endpoint is not None:
        raise UserError("--endpoint is for --by vlm")
    else:
        counts = _by_clip(run, out, model or _CLIP, weights, contrasts, images, device)
    if json_:
        print(json.dumps(counts))
        return
    scored = f"{count(counts['scored'], 'relation')} scored"
    console.output().print(f"{scored}, {counts['unscored']:,} without an image or a box with an area")


def _by_clip(
    run: Path, out: Path, model: str, weights: str | None, contrasts: int, images: str | None, device: str
) -> dict[str, int]:
    from sgpipe.files.model_cache import local_model
    from sgpipe.generation.scoring import (
        AGREEMENT_COLUMN,
        ClipAgreement,
        frequent_predicates,
        model_identity,
        score_run,
    )

    model = local_model(existing_model(model))
    predicates = frequent_predicates(run, contrasts)
    identity = {"model": model_identity(model), "weights": model_identity(weights), "contrasts": predicates}
    progress = console.Progress(console.progress())
    return score_run(
        run,
        out,
        AGREEMENT_COLUMN,
        lambda: ClipAgreement(model, weights, predicates, device),
        identity,
        progress,
        images,
    )


def _by_vlm(
    run: Path, out: Path, model: str | None, endpoint: str | None, images: str | None, device: str
) -> dict[str, int]:
    from sgpipe.files.model_cache import local_model
    from sgpipe.generation.scoring import score_run
    from sgpipe.generation.second_opinion import OPINION_COLUMN, opinion_identity, opinion_scorer
    from sgpipe.stages.score.scorer import ScorerSettings

    if model is None:
        raise UserError("--by vlm needs --model: an image-text-to-text model, or with --endpoint its name there")
    if endpoint is None:
        model = local_model(existing_model(model))
    settings = ScorerSettings("vlm", model, endpoint, device=device)
    scorer, progress = opinion_scorer(settings, out), console.Progress(console.progress())
    return score_run(run, out, OPINION_COLUMN, scorer, opinion_identity(settings), progress, images)
