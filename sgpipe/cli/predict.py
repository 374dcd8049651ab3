"""`sgpipe predict`: the relations that a trained model predicts in the images of shards."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from sgpipe.cli import options as cli
from sgpipe.errors import UserError
from sgpipe.utils.console import count

_Benchmark = Literal["hico", "vcoco", "openimages", "vg"]


def predict(
    *,
    model: Annotated[
        cli.Place,
        cli.stored_argument(
            "Detector: folder, store or hub id; or miniworld.", None, cli.maybe_path
        ),
    ],
    data: Annotated[cli.Place, cli.reads_stored("Folder of shards, or their object store.")],
    out: Annotated[Path, cli.writes_file("File to write: .json for `sgpipe eval`, or .parquet.")],
    form: Annotated[
        _Benchmark | None, cli.option("Benchmark. Default: hico; .parquet: what fits.")
    ] = None,
    limit: Annotated[
        int, cli.option("Triplets (vg: pairs) per image, best first.", "--per-image", min=1)
    ] = 100,
    zero_shot: Annotated[
        bool, cli.option("hico: drop subjects that are not persons.", "--zero-shot")
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
    parquet = out.suffix == ".parquet"
    if parquet and form in ("vg", "vcoco"):
        raise UserError(
            f"--form {form} needs every score of a pair, which .parquet lacks: write .json"
        )
    import rlip_model.evaluation.hico_classes as hico
    from sgpipe.evaluation.benchmarks import ModelRun
    from sgpipe.evaluation.inputs import hoia_schema_of
    from sgpipe.inference import predictions as files
    from sgpipe.inference.predictor import predict as predict_images
    from sgpipe.sources.hoi import HICO
    from sgpipe.stages.detect import load_detector

    if form is None:
        form = "openimages" if parquet and load_detector(model).config.subject_class else "hico"
    graphs = form in ("vg", "openimages")
    run = ModelRun(model=model, data=data, classes=classes, **vars(inference))
    config = run.config(
        "scene graph" if graphs else "zero-shot hoi" if zero_shot and form == "hico" else "hoi"
    )
    named = config.classes
    predictions = predict_images(config, run.row_groups())
    possible = hico.possible_interactions() if form == "hico" and named == HICO.classes else None
    if form == "vg":
        written = files.write_graphs(predictions, out, named, limit)
    elif form == "vcoco":
        written = files.write_vcoco(predictions, out, named)
    elif parquet:
        written = files.write_parquet(predictions, out, named, limit, possible)
    else:
        schema = run.hoia_schema() or hoia_schema_of(named)
        key = "rel_prediction" if graphs else "hoi_prediction"
        written = files.write_hoia(predictions, out, schema, key, limit, possible)
    if not written.images:
        raise UserError(f"no image could be read: {written.reason}")
    if cli.printed_json(json_, {"out": str(out), **asdict(written)}):
        return
    cli.show(f"wrote predictions for {count(written.images, 'image')} to {out}")
    if written.failed:
        failed = count(written.failed, "image")
        cli.show(f"NOTE: {failed} could not be read; first error: {written.reason}")
