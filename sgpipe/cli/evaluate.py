"""`sgpipe eval …`: one command for each benchmark."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.help import HelpfulGroup
from sgpipe.cli.predict import Batch, Classes, Device, Dtype, Gpus, Images, Precision, Split, Workers
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun
    from sgpipe.evaluation.result import EvaluationResult


Predictions = Annotated[Path, typer.Option(help="File of predictions; its forms are in docs/formats.md.")]
Annotations = Annotated[Path, typer.Option(help="Annotation file.")]
MaybePredictions = Annotated[Path | None, typer.Option(help="File of predictions; its forms are in docs/formats.md.")]
MaybeAnnotations = Annotated[Path | None, typer.Option(help="Annotation file; with --model the data is enough.")]
Model = Annotated[Path | None, typer.Option(help="Instead of predictions: a trained network's folder.")]
MaybeData = Annotated[Path | None, typer.Option(help="With --model: folder of shards.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write everything there; - prints it instead of tables.")]
CsvFile = Annotated[Path | None, typer.Option("--csv", help="Write a line for each class there.")]
PlotFile = Annotated[Path | None, typer.Option("--plot", help="Draw precision over recall there, as SVG.")]

_STANDARD_OUTPUT = Path("-")
_WIDE = 120  # columns, of tables in a file

app = typer.Typer(
    cls=HelpfulGroup, no_args_is_help=True, help="Evaluate predictions as the benchmarks' official evaluators do."
)


class HicoSetting(str, Enum):
    """Which classes are told apart from the others."""

    DEFAULT = "default"
    NF = "NF"
    UC_RF = "UC-RF"
    UC_NF = "UC-NF"
    UO = "UO"


class PhraseSuppression(str, Enum):
    """What is done to overlapping pairs and phrases."""

    NONE = "none"
    PUBLISHED = "published"
    REPAIRED = "repaired"


class LabelSource(str, Enum):
    """What of a run is compared."""

    RELATIONS = "relations"
    CANDIDATES = "candidates"


class GraphMode(str, Enum):
    """The three tasks of scene graph generation."""

    PREDCLS = "predcls"
    SGCLS = "sgcls"
    SGDET = "sgdet"


@app.command()
def hico(
    predictions: MaybePredictions = None,
    annotations: MaybeAnnotations = None,
    setting: Annotated[HicoSetting, typer.Option(help="Rare classes, or unseen ones.")] = HicoSetting.DEFAULT,
    known_object: Annotated[bool, typer.Option("--known-object", help="Only images with the class's object.")] = False,
    pair_nms: Annotated[bool, typer.Option("--pair-nms", help="Suppress pairs that overlap better ones.")] = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="With --model: leave out subjects that look like no person.")
    ] = False,
    classes: Classes = None,
    model: Model = None,
    data: MaybeData = None,
    split: Split = None,
    images: Images = None,
    batch: Batch = 4,
    dtype: Dtype = Precision.AUTO,
    device: Device = "auto",
    workers: Workers = 1,
    gpus: Gpus = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """HICO-DET: mean average precision of full, rare and non-rare, or unseen and seen classes."""
    from sgpipe.evaluation.benchmarks.evaluate_files import HicoOptions, evaluate_hico_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_hico_model

    options = HicoOptions(setting.value, known_object, pair_nms)
    if files := _files(predictions, annotations, model, data):
        result = evaluate_hico_files(*files, options, classes)
    else:
        run = _model_run(model, data, split, images, annotations, classes, batch, dtype, device, workers, gpus)
        result = evaluate_hico_model(run, options, zero_shot=zero_shot)
    _show(result, json, csv, plot)


@app.command()
def vcoco(
    annotations: Annotated[Path, typer.Option(help="V-COCO's own file: vcoco_test.json.")],
    coco: Annotated[Path, typer.Option(help="The COCO instances that it refers to: instances_vcoco_all_2014.json.")],
    predictions: MaybePredictions = None,
    possible: Annotated[
        Path | None, typer.Option(help="With --model: training shards; what never occurs there is scored 0.")
    ] = None,
    model: Model = None,
    data: MaybeData = None,
    split: Split = None,
    images: Images = None,
    batch: Batch = 4,
    dtype: Dtype = Precision.AUTO,
    device: Device = "auto",
    workers: Workers = 1,
    gpus: Gpus = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """V-COCO: role AP in scenarios 1 and 2, and agent AP."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_vcoco_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_vcoco_model

    if files := _files(predictions, annotations, model, data):
        result = evaluate_vcoco_files(*files, coco)
    else:
        run = _model_run(model, data, split, images, None, None, batch, dtype, device, workers, gpus)
        result = evaluate_vcoco_model(run, annotations, coco, possible)
    _show(result, json, csv, plot)


@app.command()
def openimages(
    predictions: MaybePredictions = None,
    annotations: MaybeAnnotations = None,
    nms: Annotated[PhraseSuppression, typer.Option(help="NMS, with the published slip or without.")] = (
        PhraseSuppression.NONE
    ),
    model: Model = None,
    data: MaybeData = None,
    split: Split = None,
    images: Images = None,
    batch: Batch = 4,
    dtype: Dtype = Precision.AUTO,
    device: Device = "auto",
    workers: Workers = 1,
    gpus: Gpus = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Open Images V6: R@50, wmAP of relations and of phrases, and score_wtd."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_open_images_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_open_images_model

    if files := _files(predictions, annotations, model, data):
        result = evaluate_open_images_files(*files, nms.value)
    else:
        run = _model_run(model, data, split, images, annotations, None, batch, dtype, device, workers, gpus)
        result = evaluate_open_images_model(run, nms.value)
    _show(result, json, csv, plot)


@app.command()
def vg(
    mode: Annotated[
        GraphMode | None, typer.Option(help="What the model was given: boxes and labels, boxes, or nothing.")
    ] = None,
    predictions: MaybePredictions = None,
    annotations: MaybeAnnotations = None,
    classes: Classes = None,
    model: Model = None,
    data: MaybeData = None,
    split: Split = None,
    images: Images = None,
    batch: Batch = 4,
    dtype: Dtype = Precision.AUTO,
    device: Device = "auto",
    workers: Workers = 1,
    gpus: Gpus = 0,
    json: JsonFile = None,
    csv: CsvFile = None,
) -> None:
    """Visual Genome (VG150): recall, mean recall and zero-shot recall, with and without graph constraint (ng-)."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_graph_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_graphs_model

    if files := _files(predictions, annotations, model, data):
        if mode is None:
            raise UserError("give --mode predcls, sgcls or sgdet: what the model was given")
        result = evaluate_graph_files(*files, mode.value, classes)
    else:
        if mode and mode is not GraphMode.SGDET:
            raise UserError(f"--mode {mode.value}: a network finds its boxes itself, so with --model it is sgdet")
        run = _model_run(model, data, split, images, annotations, classes, batch, dtype, device, workers, gpus)
        result = evaluate_graphs_model(run)
    _show(result, json, csv)


@app.command()
def labels(
    pred: Annotated[Path, typer.Option(help="Folder of a run of `sgpipe generate`.")],
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder of true relations, such as `sgpipe import vg` makes; known of drawn images."),
    ] = None,
    wanted: Annotated[
        Path | None, typer.Option(help="Folder of the relations that must be found; by default all true ones.")
    ] = None,
    source: Annotated[LabelSource, typer.Option(help="Relations, or every pair with each of its predicates.")] = (
        LabelSource.RELATIONS
    ),
    threshold: Annotated[float, typer.Option(help="Least confidence of the relations that count.")] = 0.2,
    iou: Annotated[float, typer.Option(help="Least overlap of the boxes of one object.")] = 0.5,
    synonyms: Annotated[Path | None, typer.Option(help="YAML or JSON: {predicate: [texts meaning it]}.")] = None,
    image_data: Annotated[
        Path | None, typer.Option(help="Visual Genome's image_data.json, to compare COCO's images with it.")
    ] = None,
    json: JsonFile = None,
    csv: CsvFile = None,
    plot: PlotFile = None,
) -> None:
    """Relations of a run against the truth: precision, recall and AP, by threshold, predicate and frequency."""
    from sgpipe.evaluation.label_quality.comparison import label_quality
    from sgpipe.evaluation.label_quality.report import label_report
    from sgpipe.evaluation.label_quality.synonyms import load_predicate_synonyms
    from sgpipe.storage.run_folder import RunFolder

    if truth is None:
        known = RunFolder(pred).truth
        if known is None:
            raise UserError(f"what is true of the images of {pred} is not known: give --truth")
        truth, wanted = known.true, wanted or known.composed
    found = label_quality(
        pred,
        truth,
        wanted=wanted,
        source=source.value,
        threshold=threshold,
        synonyms=load_predicate_synonyms(synonyms) if synonyms else None,
        iou=iou,
        image_data=image_data,
    )
    paths = {"pred": pred, "truth": truth, "wanted": wanted, "synonyms": synonyms, "image_data": image_data}
    settings = {name: str(path) for name, path in paths.items() if path}
    _show(label_report(found, iou=iou, **settings), json, csv, plot)


def _files(
    predictions: Path | None, annotations: Path | None, model: Path | None, data: Path | None
) -> tuple[Path, Path] | None:
    """The files, if it is files that are to be evaluated. Raises UserError: neither these nor a network are given."""
    if predictions and annotations and not model and not data:
        return predictions, annotations
    if predictions or not model or not data:
        raise UserError("give --predictions and --annotations, or --model and --data")
    return None


def _model_run(
    model: Path | None,
    data: Path | None,
    split: str | None,
    images: Path | None,
    annotations: Path | None,
    classes: Path | None,
    batch: int,
    dtype: Precision,
    device: str,
    workers: int,
    gpus: float,
) -> ModelRun:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun

    assert model is not None
    assert data is not None
    return ModelRun(
        model,
        data,
        split=split,
        images=images,
        annotations=annotations,
        classes=classes,
        batch=batch,
        dtype=dtype.value,
        device=device,
        workers=workers,
        gpus=gpus,
    )


def _show(result: EvaluationResult, json: Path | None, csv: Path | None, plot: Path | None = None) -> None:
    if json == _STANDARD_OUTPUT:
        print(result.as_json())
    else:
        _print(result)
        if json:
            result.write_json(json)
    if csv:
        result.write_csv(csv)
    if plot:
        result.write_plot(plot)


def _print(result: EvaluationResult) -> None:
    screen = console.output()
    if not screen.is_terminal:
        screen.width = max(screen.width, _WIDE)
    result.print(screen)
