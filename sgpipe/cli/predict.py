"""`sgpipe predict`: the relations that a trained model predicts in the images of shards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks import ModelRun
    from sgpipe.inference.predictions import Task, WriteSummary

_Benchmark = Literal["hico", "vcoco", "openimages", "vg"]


def predict(
    *,
    model: Annotated[
        declare.Place,
        declare.stored_argument(
            "Detector: folder, store or hub id; or miniworld.", None, declare.maybe_path
        ),
    ],
    data: Annotated[
        declare.Place, declare.reads_stored("Folder of shards, or their object store.")
    ],
    out: Annotated[
        Path, declare.writes_file("File to write: .json for `sgpipe eval`, or .parquet.")
    ],
    form: Annotated[
        _Benchmark | None, declare.option("Benchmark. Default: hico; .parquet: what fits.")
    ] = None,
    limit: Annotated[
        int, declare.option("Triplets (vg: pairs) per image, best first.", "--per-image", min=1)
    ] = 100,
    zero_shot: Annotated[
        bool, declare.option("hico: drop subjects that are not persons.", "--zero-shot")
    ] = False,
    classes: cli.Classes = None,
    inference: cli.InferenceOptions,
    json_: cli.Json = False,
) -> None:
    """Predict relations in the images of shards with a trained model.

    Examples:
      sgpipe predict detector/ --data hico-test/ --out predictions.json
    """
    if out.suffix not in (".json", ".parquet"):
        raise UserError(f"--out {out}: expected a file that ends in .json or .parquet")
    is_parquet = out.suffix == ".parquet"
    if is_parquet and form in ("vg", "vcoco"):
        raise UserError(
            f"--form {form} needs every score of a pair, which .parquet lacks: write .json"
        )
    from sgpipe.evaluation.benchmarks import ModelRun
    from sgpipe.stages.detect import load_detector

    if form is None:
        has_any_subject = is_parquet and load_detector(model).config.subject_class
        form = "openimages" if has_any_subject else "hico"
    run = ModelRun(model=model, data=data, classes=classes, **vars(inference))
    written = _predict_and_write(run, out, form, _task(form, zero_shot), limit)
    if not written.images:
        raise UserError(f"no image could be read: {written.reason}")
    if cli.printed_json(json_, {"out": str(out), **asdict(written)}):
        return
    cli.show(f"wrote predictions for {count(written.images, 'image')} to {out}")
    if written.failed:
        failed = count(written.failed, "image")
        cli.show(f"NOTE: {failed} could not be read; first error: {written.reason}")


def _task(form: _Benchmark, zero_shot: bool) -> Task:
    if form in ("vg", "openimages"):
        return "scene graph"
    return "zero-shot hoi" if zero_shot and form == "hico" else "hoi"


def _predict_and_write(
    run: ModelRun, out: Path, form: _Benchmark, task: Task, limit: int
) -> WriteSummary:
    """Run a model and write what it predicts in the form of a benchmark, or as Parquet."""
    from rlip_model.evaluation.hico_classes import possible_interactions
    from sgpipe.evaluation.inputs import hoia_schema_of
    from sgpipe.inference import predictions as files
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.sources.hoi import HICO

    config = run.config(task)
    classes = config.classes
    predictions = predict_images(config, run.row_groups())
    if form == "vg":
        return files.write_graphs(predictions, out, classes, limit)
    if form == "vcoco":
        return files.write_vcoco(predictions, out, classes)
    is_hico = form == "hico" and classes == HICO.classes
    possible = possible_interactions() if is_hico else None
    if out.suffix == ".parquet":
        return files.write_parquet(predictions, out, classes, limit, possible)
    schema = run.hoia_schema() or hoia_schema_of(classes)
    key = "hoi_prediction" if form == "hico" else "rel_prediction"
    return files.write_hoia(predictions, out, schema, key, limit, possible)
