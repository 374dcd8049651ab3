"""`sgpipe predict`: the predictions of a trained model, as a file. `sgpipe score`: relations scored by other models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgpipe.cli import options as cli
from sgpipe.errors import UserError, existing_model
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate import ModelRun
    from sgpipe.inference.writers import WriteSummary


_CLIP = "ViT-B-32"


PredictionFormat = Literal["hico", "vcoco", "openimages", "vg"]  # the benchmark whose evaluator reads the file


def predict(
    *,
    model: Annotated[
        cli.Place,
        typer.Argument(
            help="Folder or store of a ParSeDA or ParSeD model, or of its training.",
            parser=cli.as_location,
            callback=cli.stored,
        ),
    ],
    data: Annotated[cli.Place, cli.reads_stored("Folder of shards, or their object store.")],
    out: Annotated[Path, cli.writes_file("File to write: .json for `sgpipe eval`, or .parquet.")],
    form: Annotated[
        PredictionFormat | None,
        cli.option("Benchmark whose evaluator reads the file. Default: hico; for .parquet, what fits the model."),
    ] = None,
    limit: Annotated[
        int, cli.option("Triplets to keep per image (vg: pairs), best first.", "--per-image", min=1)
    ] = 100,
    zero_shot: Annotated[
        bool, cli.option("hico: drop pairs whose subject is not classified as a person.", "--zero-shot")
    ] = False,
    classes: cli.Classes = None,
    short_side: Annotated[
        int | None, cli.option("Short side of the resized image, in pixels. Default: as in training.", min=32)
    ] = None,
    long_side: Annotated[int | None, cli.option("Maximum long side, in pixels.", min=32)] = None,
    inference: cli.InferenceOptions,
    json_: cli.Json = False,
) -> None:
    """Predict relations in the images of shards with a trained model.

    Examples:

      sgpipe predict detector/ --data hico-test/ --out predictions.json
    """
    from sgpipe.evaluation.benchmarks.evaluate import ModelRun

    if out.suffix not in (".json", ".parquet"):
        raise UserError(f"--out {out}: expected a file that ends in .json or .parquet")
    sides = _sides(short_side, long_side)
    run = ModelRun(model=model, data=data, classes=classes, sides=sides, **inference.as_arguments())
    written = _write(run, out, form, limit, zero_shot)
    if not written.images:
        raise UserError(f"no image could be read: {written.reason}")
    if json_:
        print(json.dumps({"out": str(out), **asdict(written)}, indent=2))
        return
    screen = console.output()
    screen.print(f"wrote predictions for {count(written.images, 'image')} to {out}", soft_wrap=True)
    if written.failed:
        failed = count(written.failed, "image")
        screen.print(f"NOTE: {failed} could not be read; first error: {written.reason}", soft_wrap=True)


def _sides(short_side: int | None, long_side: int | None) -> tuple[int, int] | None:
    """Return both sides, or None. Raises UserError: only one is given, or the short side is the longer one."""
    if short_side is None and long_side is None:
        return None
    if short_side is None or long_side is None or short_side > long_side:
        raise UserError("pass --short-side and --long-side together, with the short side no longer than the long side")
    return short_side, long_side


def _write(run: ModelRun, out: Path, form: PredictionFormat | None, limit: int, zero_shot: bool) -> WriteSummary:
    import rlip_model.evaluation.hico_classes as hico
    from sgpipe.evaluation.benchmarks.pairs import hoia_schema_of
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.inference.writers import write_hoia, write_parquet
    from sgpipe.sources.hoi import HICO
    from sgpipe.stages.detect import load_detector

    parquet = out.suffix == ".parquet"
    if form in ("vg", "vcoco"):
        if parquet:
            raise UserError(f"--form {form} needs every score of a pair, which .parquet lacks: write .json")
        return _write_whole_pairs(run, out, form, limit)
    if form is None and parquet:
        subjects = load_detector(run.model).config.subject_class
        form = "openimages" if subjects else "hico"
    if form == "openimages":
        config, key = run.config("scene graph"), "rel_prediction"
    else:
        config, key = run.config("zero-shot hoi" if zero_shot else "hoi"), "hoi_prediction"
    hico_det = form != "openimages" and config.classes == HICO.classes
    possible = hico.possible_interactions() if hico_det else None
    if parquet:
        return write_parquet(predict_images(config, run.row_groups()), out, config.classes, limit, possible)
    schema = run.hoia_schema() or hoia_schema_of(config.classes)
    return write_hoia(predict_images(config, run.row_groups()), out, schema, key, limit, possible)


def _write_whole_pairs(run: ModelRun, out: Path, form: PredictionFormat, limit: int) -> WriteSummary:
    """Write predictions for evaluators that need the scores of all predicates of a pair."""
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.inference.writers import PeopleConverter, vcoco_actions, write_graphs, write_vcoco

    if form == "vg":
        graphs = run.config("scene graph")
        return write_graphs(predict_images(graphs, run.row_groups()), out, graphs.classes, limit)
    config = run.config("hoi")
    converter = PeopleConverter(config.classes, vcoco_actions(config.classes.relations))
    return write_vcoco(predict_images(config, run.row_groups()), out, converter)


def score(
    run: cli.StoredRun,
    out: Annotated[Path, cli.writes_folder("Folder for the shards with scores; an unfinished scoring is resumed.")],
    by: Annotated[
        Literal["clip", "vlm"],
        cli.option("clip: how well the text of a relation fits. vlm: ask a vision-language model."),
    ] = "clip",
    model: Annotated[
        str | None,
        cli.reads_model(
            "clip: open_clip name, hf-hub:ID, hub id or folder; default ViT-B-32. vlm: hub id or folder of an "
            "image-text-to-text model; with --endpoint its name there."
        ),
    ] = None,
    weights: Annotated[str | None, cli.reads_model("clip: weights of a named model: file or tag.")] = None,
    contrasts: Annotated[int, cli.option("clip: number of other predicates to compare with.", min=1)] = 8,
    endpoint: Annotated[
        str | None, cli.option("vlm: URL of a server with the OpenAI chat API that returns log-probabilities.")
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
    from sgpipe.generation.scoring import OPINION_COLUMN, opinion_identity, opinion_scorer, score_run
    from sgpipe.stages.score.scorer import ScorerSettings

    if model is None:
        raise UserError("--by vlm needs --model: an image-text-to-text model, or with --endpoint its name there")
    if endpoint is None:
        model = local_model(existing_model(model))
    settings = ScorerSettings("vlm", model, endpoint, device=device)
    scorer, progress = opinion_scorer(settings, out), console.Progress(console.progress())
    return score_run(run, out, OPINION_COLUMN, scorer, opinion_identity(settings), progress, images)
