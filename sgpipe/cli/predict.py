"""`sgpipe predict`: the predictions of a trained model, as a file. `sgpipe score`: relations scored by other models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate import ModelRun
    from sgpipe.inference.writers import WriteSummary


PredictionFormat = Literal["hico", "vcoco", "openimages", "vg"]  # the benchmark whose evaluator reads the file


def predict(
    *,
    model: Annotated[
        cli.Place,
        cli.stored_argument("ParSeDA or ParSeD: folder (also of its training), store or hub id.", None, cli.maybe_path),
    ],
    data: Annotated[cli.Place, cli.reads_stored("Folder of shards, or their object store.")],
    out: Annotated[Path, cli.writes_file("File to write: .json for `sgpipe eval`, or .parquet.")],
    form: Annotated[PredictionFormat | None, cli.option("Benchmark. Default: hico; .parquet: what fits.")] = None,
    limit: Annotated[int, cli.option("Triplets (vg: pairs) per image, best first.", "--per-image", min=1)] = 100,
    zero_shot: Annotated[bool, cli.option("hico: drop subjects that are not persons.", "--zero-shot")] = False,
    classes: cli.Classes = None,
    short_side: Annotated[int | None, cli.option("Short side in pixels. Default: as in training.", min=32)] = None,
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
    sides = None
    if short_side is not None or long_side is not None:
        if short_side is None or long_side is None or short_side > long_side:
            raise UserError("pass --short-side and --long-side together, the short side not longer than the long side")
        sides = short_side, long_side
    run = ModelRun(model=model, data=data, classes=classes, sides=sides, **inference.as_arguments())
    written = _write(run, out, form, limit, zero_shot)
    if not written.images:
        raise UserError(f"no image could be read: {written.reason}")
    if cli.printed_json(json_, {"out": str(out), **asdict(written)}):
        return
    cli.show(f"wrote predictions for {count(written.images, 'image')} to {out}")
    if written.failed:
        failed = count(written.failed, "image")
        cli.show(f"NOTE: {failed} could not be read; first error: {written.reason}")


def _write(run: ModelRun, out: Path, form: PredictionFormat | None, limit: int, zero_shot: bool) -> WriteSummary:
    """Predict, and write what the benchmark's evaluator reads."""
    import rlip_model.evaluation.hico_classes as hico
    from sgpipe.evaluation.benchmarks.inputs import hoia_schema_of
    from sgpipe.inference import writers
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.sources.hoi import HICO
    from sgpipe.stages.detect import load_detector

    parquet = out.suffix == ".parquet"
    if parquet and form in ("vg", "vcoco"):
        raise UserError(f"--form {form} needs every score of a pair, which .parquet lacks: write .json")
    if form is None:
        form = "openimages" if parquet and load_detector(run.model).config.subject_class else "hico"
    graphs = form in ("vg", "openimages")
    config = run.config("scene graph" if graphs else "zero-shot hoi" if zero_shot and form == "hico" else "hoi")
    classes, predictions = config.classes, predict_images(config, run.row_groups())
    if form == "vg":
        return writers.write_graphs(predictions, out, classes, limit)
    if form == "vcoco":
        converter = writers.PeopleConverter(classes, writers.vcoco_actions(classes.relations))
        return writers.write_vcoco(predictions, out, converter)
    possible = hico.possible_interactions() if form == "hico" and classes == HICO.classes else None
    if parquet:
        return writers.write_parquet(predictions, out, classes, limit, possible)
    schema, key = run.hoia_schema() or hoia_schema_of(classes), "rel_prediction" if graphs else "hoi_prediction"
    return writers.write_hoia(predictions, out, schema, key, limit, possible)


def score(
    run: cli.StoredRun,
    out: Annotated[Path, cli.writes_folder("Folder for the shards with scores; an unfinished scoring is resumed.")],
    by: Annotated[Literal["clip", "vlm"], cli.option("clip: text fits image? vlm: ask a model.")] = "clip",
    model: Annotated[str | None, cli.reads_model("Hub id or folder, open_clip name, or name at --endpoint.")] = None,
    weights: Annotated[str | None, cli.reads_model("clip: weights of a named model: file or tag.")] = None,
    contrasts: Annotated[int, cli.option("clip: number of other predicates to compare with.", min=1)] = 8,
    endpoint: Annotated[str | None, cli.option("vlm: URL of an OpenAI chat API with log-probabilities.")] = None,
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
    from sgpipe.stages.score.scorer import ScorerSettings

    column: Any
    make: Callable[[], Any]
    if by == "vlm":
        if weights is not None:
            raise UserError("--weights is for --by clip")
        if model is None:
            raise UserError("--by vlm needs --model: an image-text-to-text model, or with --endpoint its name there")
        name = local_model(model) if endpoint is None else model
        settings = ScorerSettings("vlm", name, endpoint, device=device)
        column, identity = scoring.VLM_COLUMN, scoring.vlm_identity(settings)
        make = scoring.vlm_scorer(settings, out)
    else:
        if endpoint is not None:
            raise UserError("--endpoint is for --by vlm")
        name = local_model(model or "ViT-B-32")
        predicates = scoring.frequent_predicates(run, contrasts)
        identity = {each: scoring.model_identity(value) for each, value in (("model", name), ("weights", weights))}
        column, identity = scoring.CLIP_COLUMN, identity | {"contrasts": predicates}
        make = partial(scoring.RelationRanker, name, weights, predicates, device)
    counts = scoring.score_run(run, out, column, make, identity, console.Progress(), images)
    if json_:
        print(json.dumps(counts))
        return
    scored = f"{count(counts['scored'], 'relation')} scored"
    console.output().print(f"{scored}, {counts['unscored']:,} without an image or a box with an area")
