"""`sgpipe eval …`: one command for each benchmark, and one for the labels of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.help import GroupedCommand, HelpfulGroup
from sgpipe.cli.options import (
    Classes,
    GroundTruthFolder,
    ImageData,
    InferenceOptions,
    Json,
    reads_file,
    reads_folder,
    with_option_groups,
    writes_file,
)
from sgpipe.errors import UserError
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun
    from sgpipe.evaluation.result import EvaluationResult

Predictions = Annotated[
    Path | None, typer.Option(help="Predictions file; docs/formats.md describes the formats.", callback=reads_file)
]
Annotations = Annotated[Path | None, typer.Option(help="Annotation file; optional with --model.", callback=reads_file)]

_FILE_WIDTH = 120  # columns of tables that are not printed on a terminal


class EvalCommand(GroupedCommand):
    """A command that still takes the earlier forms `--json FILE` and `--json -` of `--json-file FILE` and `--json`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        return super().parse_args(ctx, list(_present_form(args)))


def _present_form(args: list[str]) -> Iterator[str]:
    """The options after `--json` begin with a dash, as no command here has arguments, so another word is a file."""
    for before, word, after in zip(["", *args], args, [*args[1:], "--"], strict=False):
        if word.startswith("--json="):
            yield "--json" if word == "--json=-" else word.replace("--json=", "--json-file=", 1)
        elif word == "--json" and not after.startswith("-"):
            yield "--json-file"
        elif (before, word) != ("--json", "-"):
            yield word


app = typer.Typer(cls=HelpfulGroup, no_args_is_help=True, help="Evaluate predictions as the official evaluators do.")


class HicoSetting(StrEnum):
    """How HICO-DET's classes are grouped."""

    DEFAULT = "default"
    NF = "NF"
    UC_RF = "UC-RF"
    UC_NF = "UC-NF"
    UO = "UO"


class PhraseSuppression(StrEnum):
    """How overlapping pairs and phrases are suppressed."""

    NONE = "none"
    PUBLISHED = "published"
    REPAIRED = "repaired"


class LabelSource(StrEnum):
    """The part of a run that is evaluated."""

    RELATIONS = "relations"
    CANDIDATES = "candidates"


class GraphMode(StrEnum):
    """The three tasks of scene graph generation."""

    PREDCLS = "predcls"
    SGCLS = "sgcls"
    SGDET = "sgdet"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A trained model to evaluate, instead of a predictions file."""

    model: Annotated[
        Path | None, typer.Option(help="Folder of a trained model, instead of predictions.", callback=reads_folder)
    ] = None
    data: Annotated[Path | None, typer.Option(help="With --model: folder of shards.", callback=reads_folder)] = None


@dataclass(frozen=True, kw_only=True)
class TableFiles:
    """How the result is printed, and the files that it is written to."""

    json: Json = False
    json_file: Annotated[
        Path | None,
        typer.Option("--json-file", help="Write the full result as JSON to this file.", callback=writes_file),
    ] = None
    csv: Annotated[
        Path | None, typer.Option("--csv", help="Write one line per class to this file.", callback=writes_file)
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResultFiles(TableFiles):
    """The same, with a plot."""

    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Write the precision-recall curves to this SVG file.", callback=writes_file),
    ] = None


@app.command(cls=EvalCommand)
@with_option_groups
def hico(
    *,
    predictions: Predictions = None,
    annotations: Annotations = None,
    setting: Annotated[
        HicoSetting, typer.Option(help="How to group the classes: rare and non-rare, or unseen and seen.")
    ] = HicoSetting.DEFAULT,
    known_object: Annotated[
        bool, typer.Option("--known-object", help="Evaluate a class only on images with its object.")
    ] = False,
    pair_nms: Annotated[bool, typer.Option("--pair-nms", help="Suppress pairs that overlap better ones.")] = False,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="With --model: drop subjects not classified as a person.")
    ] = False,
    classes: Classes = None,
    model: ModelOptions,
    inference: InferenceOptions,
    files: ResultFiles,
) -> None:
    """HICO-DET: mean average precision over full, rare and non-rare classes, or over unseen and seen classes."""
    from sgpipe.evaluation.benchmarks.evaluate_files import HicoOptions, evaluate_hico_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_hico_model

    options = HicoOptions(setting.value, known_object, pair_nms)
    if paths := _files(predictions, annotations, model):
        result = evaluate_hico_files(*paths, options, classes)
    else:
        run = _model_run(model, inference, annotations, classes)
        result = evaluate_hico_model(run, options, zero_shot=zero_shot)
    _show(result, files, files.plot)


@app.command(cls=EvalCommand)
@with_option_groups
def vcoco(
    *,
    annotations: Annotated[Path, typer.Option(help="V-COCO's own annotations: vcoco_test.json.", callback=reads_file)],
    coco: Annotated[
        Path, typer.Option(help="The COCO instances they refer to: instances_vcoco_all_2014.json.", callback=reads_file)
    ],
    predictions: Predictions = None,
    possible: Annotated[
        Path | None,
        typer.Option(
            help="With --model: training shards; what never occurs in them is scored 0.", callback=reads_folder
        ),
    ] = None,
    model: ModelOptions,
    inference: InferenceOptions,
    files: ResultFiles,
) -> None:
    """V-COCO: role AP in scenarios 1 and 2, and agent AP."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_vcoco_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_vcoco_model

    if paths := _files(predictions, annotations, model):
        result = evaluate_vcoco_files(*paths, coco)
    else:
        result = evaluate_vcoco_model(_model_run(model, inference), annotations, coco, possible)
    _show(result, files, files.plot)


@app.command(cls=EvalCommand)
@with_option_groups
def openimages(
    *,
    predictions: Predictions = None,
    annotations: Annotations = None,
    nms: Annotated[
        PhraseSuppression, typer.Option(help="Non-maximum suppression, with the bug of the published code or without.")
    ] = PhraseSuppression.NONE,
    model: ModelOptions,
    inference: InferenceOptions,
    files: ResultFiles,
) -> None:
    """Open Images V6: R@50, wmAP of relations and of phrases, and score_wtd."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_open_images_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_open_images_model

    if paths := _files(predictions, annotations, model):
        result = evaluate_open_images_files(*paths, nms.value)
    else:
        result = evaluate_open_images_model(_model_run(model, inference, annotations), nms.value)
    _show(result, files, files.plot)


@app.command(cls=EvalCommand)
@with_option_groups
def vg(
    *,
    mode: Annotated[
        GraphMode | None, typer.Option(help="What the model was given: boxes and classes, boxes, or only images.")
    ] = None,
    predictions: Predictions = None,
    annotations: Annotations = None,
    classes: Classes = None,
    model: ModelOptions,
    inference: InferenceOptions,
    files: TableFiles,
) -> None:
    """Visual Genome (VG150): recall, mean recall and zero-shot recall, with and without graph constraint (ng-)."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_graph_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_graphs_model

    if paths := _files(predictions, annotations, model):
        if mode is None:
            raise UserError("give --mode predcls, sgcls or sgdet: what the model was given")
        result = evaluate_graph_files(*paths, mode.value, classes)
    else:
        if mode and mode is not GraphMode.SGDET:
            raise UserError(f"--mode {mode.value}: with --model the mode is sgdet, as the model detects its own boxes")
        result = evaluate_graphs_model(_model_run(model, inference, annotations, classes))
    _show(result, files)


@app.command(cls=EvalCommand)
@with_option_groups
def labels(
    *,
    pred: Annotated[Path, typer.Option(help="Folder of a run of `sgpipe generate`.", callback=reads_folder)],
    truth: GroundTruthFolder = None,
    wanted: Annotated[
        Path | None,
        typer.Option(
            help="Shards with the relations that recall counts. Default: all of the ground truth.",
            callback=reads_folder,
        ),
    ] = None,
    source: Annotated[
        LabelSource, typer.Option(help="Evaluate the relations, or every candidate pair with each of its predicates.")
    ] = LabelSource.RELATIONS,
    threshold: Annotated[float, typer.Option(help="Minimum confidence of the relations that count.")] = 0.2,
    iou: Annotated[float, typer.Option(help="Minimum IoU of matching boxes.")] = 0.5,
    synonyms: Annotated[
        Path | None, typer.Option(help="YAML or JSON: {predicate: [texts with the same meaning]}.", callback=reads_file)
    ] = None,
    image_data: ImageData = None,
    files: ResultFiles,
) -> None:
    """Compare a run's relations with ground truth: precision, recall and AP, by threshold, predicate and frequency."""
    from sgpipe.evaluation.label_quality.comparison import label_quality
    from sgpipe.evaluation.label_quality.report import label_report
    from sgpipe.evaluation.label_quality.synonyms import load_predicate_synonyms
    from sgpipe.storage.run_folder import GroundTruth, RunFolder

    own = RunFolder(pred).ground_truth if truth is None else GroundTruth(truth)
    if own is None:
        raise UserError(f"{pred} has no ground truth of its own: give --truth")
    ground_truth = GroundTruth(own.relations, wanted or own.required, image_data or own.image_data)
    quality = label_quality(
        pred,
        ground_truth,
        source=source.value,
        threshold=threshold,
        synonyms=load_predicate_synonyms(synonyms) if synonyms else None,
        iou=iou,
    )
    paths = {
        "pred": pred,
        "truth": ground_truth.relations,
        "wanted": ground_truth.required,
        "synonyms": synonyms,
        "image_data": ground_truth.image_data,
    }
    settings = {name: str(path) for name, path in paths.items() if path}
    _show(label_report(quality, iou=iou, **settings), files, files.plot)


def _files(predictions: Path | None, annotations: Path | None, model: ModelOptions) -> tuple[Path, Path] | None:
    """The predictions and annotations; None if a model is to be evaluated. Raises UserError: neither is given."""
    if predictions and annotations and not model.model and not model.data:
        return predictions, annotations
    if predictions or not model.model or not model.data:
        raise UserError("give --predictions and --annotations, or --model and --data")
    return None


def _model_run(
    model: ModelOptions, inference: InferenceOptions, annotations: Path | None = None, classes: Path | None = None
) -> ModelRun:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun

    assert model.model is not None
    assert model.data is not None
    arguments = inference.as_arguments()
    return ModelRun(model=model.model, data=model.data, annotations=annotations, classes=classes, **arguments)


def _show(result: EvaluationResult, files: TableFiles, plot: Path | None = None) -> None:
    if files.json:
        print(result.as_json())
    else:
        _print(result)
    if files.json_file:
        result.write_json(files.json_file)
    if files.csv:
        result.write_csv(files.csv)
    if plot:
        result.write_plot(plot)


def _print(result: EvaluationResult) -> None:
    screen = console.output()
    if not screen.is_terminal:
        screen.width = max(screen.width, _FILE_WIDTH)
    result.print(screen)
