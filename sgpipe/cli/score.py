"""`sgpipe score`: how well relations fit their images, by another model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.generation.scoring import Scorer
    from sgpipe.recipe import TagConfig

_BY_FREQUENCY = "select predicate from predicates order by relations desc, predicate limit ?"


class _Method(NamedTuple):
    """The column that scores go to, what decides them, and what loads the model."""

    column: str
    identity: dict[str, Any]
    make_scorer: Callable[[], Scorer]


def score(
    run: cli.StoredRun,
    out: Annotated[
        Path,
        declare.writes_folder(
            "Folder for the shards with scores; an unfinished scoring is resumed."
        ),
    ],
    by: Annotated[
        Literal["clip", "vlm"], declare.option("clip: text fits image? vlm: ask a model.")
    ] = "clip",
    model: Annotated[
        str | None, declare.reads_model("Hub id or folder, open_clip name, or name at --endpoint.")
    ] = None,
    weights: Annotated[
        str | None, declare.reads_model("clip: weights of a named model: file or tag.")
    ] = None,
    contrasts: Annotated[
        int, declare.option("clip: number of other predicates to compare with.", min=1)
    ] = 8,
    endpoint: Annotated[
        str | None, declare.option("vlm: URL of an OpenAI chat API with log-probabilities.")
    ] = None,
    engine: Annotated[
        str | None,
        declare.option("vlm: start servers of --model: vllm, sglang, transformers or a command."),
    ] = None,
    questions: Annotated[
        Literal["each", "shared"] | None,
        declare.option(
            "vlm: an outlined image for each relation (each), or numbered boxes for all."
        ),
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
    from sgpipe.generation.scoring import score_run

    progress = console.Progress()
    running = ExitStack()
    if by == "vlm":
        if weights is not None:
            raise UserError("--weights is for --by clip")
        config = _vlm_config(model, endpoint, engine, questions or "each", device)
        method = _by_vlm(out, config, progress, running)
    else:
        of_vlm = {"--endpoint": endpoint, "--engine": engine, "--questions": questions}
        for option, value in of_vlm.items():
            if value is not None:
                raise UserError(f"{option} is for --by vlm")
        method = _by_clip(run, model or "ViT-B-32", weights, contrasts, device)
    with running:
        counts = score_run(
            run, out, method.column, method.make_scorer, method.identity, progress, images
        )
    if cli.printed_json(json_, counts):
        return
    scored = f"{count(counts['scored'], 'relation')} scored"
    console.output().print(
        f"{scored}, {counts['unscored']:,} without an image or a box with an area"
    )


def _vlm_config(
    model: str | None,
    endpoint: str | None,
    engine: str | None,
    questions: Literal["each", "shared"],
    device: str,
) -> TagConfig:
    """Return the settings of a vision-language model, which is here or behind an endpoint."""
    from sgpipe.files.model_cache import local_model
    from sgpipe.recipe import TagConfig
    from sgpipe.stages.served.engines.commands import model_servers

    if model is None:
        raise UserError(
            "--by vlm needs --model: an image-text-to-text model, or with --endpoint its name there"
        )
    is_here = endpoint is None and engine is None
    config = TagConfig(
        method="vlm",
        tagger=local_model(model) if is_here else model,
        endpoint=endpoint,
        engine=engine,
        questions=questions,
        device=device,
    )
    if config.has_engine:
        model_servers({"tag": config})  # refuses what is no engine
    return config


def _by_vlm(
    out: Path, config: TagConfig, progress: console.Progress, running: ExitStack
) -> _Method:
    """Return how a vision-language model scores.

    Args:
        out: keeps the answers of a served model.
        running: ends the servers of an engine.
    """
    from sgpipe.generation.scoring import vlm_identity, vlm_scorer
    from sgpipe.storage.shards import VLM_SCORE

    make_scorer = partial(vlm_scorer, config, out, progress.say, running)
    return _Method(VLM_SCORE, vlm_identity(config), make_scorer)


def _by_clip(
    run: declare.Place, model: str, weights: str | None, contrasts: int, device: str
) -> _Method:
    """Return how CLIP scores, which compares with the most frequent predicates of the run."""
    from sgpipe.files.model_cache import local_model
    from sgpipe.generation.scoring import RelationRanker
    from sgpipe.storage.index import open_run
    from sgpipe.storage.shards import CLIP_SCORE
    from sgpipe.utils.hashing import model_sha256

    model = local_model(model)
    with open_run(run) as database:
        predicates = [predicate for (predicate,) in database.rows(_BY_FREQUENCY, [contrasts])]
    model_hash = model_sha256(model if weights is None else f"{model}:{weights}")
    return _Method(
        column=CLIP_SCORE,
        identity={"model": model_hash, "contrasts": predicates},
        make_scorer=partial(RelationRanker, model, weights, predicates, device),
    )
