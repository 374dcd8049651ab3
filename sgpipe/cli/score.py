"""`sgpipe score`: how well relations fit their images, by another model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count


def score(
    run: cli.StoredRun,
    out: Annotated[
        Path,
        cli.writes_folder("Folder for the shards with scores; an unfinished scoring is resumed."),
    ],
    by: Annotated[
        Literal["clip", "vlm"], cli.option("clip: text fits image? vlm: ask a model.")
    ] = "clip",
    model: Annotated[
        str | None, cli.reads_model("Hub id or folder, open_clip name, or name at --endpoint.")
    ] = None,
    weights: Annotated[
        str | None, cli.reads_model("clip: weights of a named model: file or tag.")
    ] = None,
    contrasts: Annotated[
        int, cli.option("clip: number of other predicates to compare with.", min=1)
    ] = 8,
    endpoint: Annotated[
        str | None, cli.option("vlm: URL of an OpenAI chat API with log-probabilities.")
    ] = None,
    images: cli.MovedImages = None,
    device: cli.Device = "auto",
    json_: cli.Json = False,
) -> None:
    """Score how well relations fit their images, by CLIP or by asking a vision-language model.

    `sgpipe stats` and `sgpipe view` show the scores. A run can have both.

    Examples:
      sgpipe score coco-relations/ --out scored/ --model ViT-B-32 --weights laion2b_s34b_b79k
      sgpipe score coco-relations/ --out judged/ --by vlm --model Qwen/Qwen2.5-VL-3B-Instruct
    """
    from sgpipe.files.model_cache import local_model
    from sgpipe.generation import scoring
    from sgpipe.recipe import TagConfig
    from sgpipe.storage.index import open_run
    from sgpipe.storage.shards import CLIP_SCORE, VLM_SCORE
    from sgpipe.utils.hashing import model_sha256

    make: Callable[[], Any]
    if by == "vlm":
        if weights is not None:
            raise UserError("--weights is for --by clip")
        if model is None:
            raise UserError(
                "--by vlm needs --model: an image-text-to-text model, or with --endpoint its name"
                " there"
            )
        name = local_model(model) if endpoint is None else model
        config = TagConfig(method="vlm", tagger=name, endpoint=endpoint, device=device)
        column = VLM_SCORE
        identity = scoring.vlm_identity(config)
        make = partial(scoring.vlm_scorer, config, out)
    else:
        if endpoint is not None:
            raise UserError("--endpoint is for --by vlm")
        name = local_model(model or "ViT-B-32")
        by_frequency = "select predicate from predicates order by relations desc, predicate limit ?"
        with open_run(run) as database:
            predicates = [predicate for (predicate,) in database.rows(by_frequency, [contrasts])]
        named = model_sha256(name if weights is None else f"{name}:{weights}")
        column = CLIP_SCORE
        identity = {"model": named, "contrasts": predicates}
        make = partial(scoring.RelationRanker, name, weights, predicates, device)
    counts = scoring.score_run(run, out, column, make, identity, console.Progress(), images)
    if cli.printed_json(json_, counts):
        return
    scored = f"{count(counts['scored'], 'relation')} scored"
    console.output().print(
        f"{scored}, {counts['unscored']:,} without an image or a box with an area"
    )
