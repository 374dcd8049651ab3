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
    reads_file,
    reads_place,
    reads_run,
    with_option_groups,
)
from sgpipe.cli.results import CompareOptions, ResultFiles, TableFiles, show
from sgpipe.errors import UserError

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun
    from sgpipe.evaluation.result import EvaluationResult
    from sgpipe.storage.run_folder import GroundTruth

Predictions = Annotated[
    Path | None, typer.Option(help="Predictions file; docs/formats.md describes the formats.", callback=reads_file)
]
Annotations = Annotated[Path | None, typer.Option(help="Annotation file; optional with --model.", callback=reads_file)]


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
        Path | None,
        typer.Option(help="Folder or store of a trained model, instead of predictions.", callback=reads_run),
    ] = None
    data: Annotated[
        Path | None, typer.Option(help="With --model: folder of shards, or their object store.", callback=reads_run)
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
    compare: CompareOptions,
    files: ResultFiles,
) -> None:
    """HICO-DET: mean average precision over full, rare and non-rare classes, or over unseen and seen classes."""
    from sgpipe.evaluation.benchmarks.evaluate_files import HicoOptions, evaluate_hico_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_hico_model

    options = HicoOptions(setting.value, known_object, pair_nms)

    def evaluate(other: Path | None) -> EvaluationResult:
        if paths := _files(predictions, annotations, model, other):
            return evaluate_hico_files(*paths, options, classes)
        run = _model_run(model, inference, annotations, classes, other)
        return evaluate_hico_model(run, options, zero_shot=zero_shot)

    show(evaluate, compare, files, files.plot)


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
        typer.Option(help="With --model: training shards; what never occurs in them is scored 0.", callback=reads_run),
    ] = None,
    model: ModelOptions,
    inference: InferenceOptions,
    compare: CompareOptions,
    files: ResultFiles,
) -> None:
    """V-COCO: role AP in scenarios 1 and 2, and agent AP."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_vcoco_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_vcoco_model

    def evaluate(other: Path | None) -> EvaluationResult:
        if paths := _files(predictions, annotations, model, other):
            return evaluate_vcoco_files(*paths, coco)
        return evaluate_vcoco_model(_model_run(model, inference, other=other), annotations, coco, possible)

    show(evaluate, compare, files, files.plot)


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
    compare: CompareOptions,
    files: ResultFiles,
) -> None:
    """Open Images V6: R@50, wmAP of relations and of phrases, and score_wtd."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_open_images_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_open_images_model

    def evaluate(other: Path | None) -> EvaluationResult:
        if paths := _files(predictions, annotations, model, other):
            return evaluate_open_images_files(*paths, nms.value)
        return evaluate_open_images_model(_model_run(model, inference, annotations, other=other), nms.value)

    show(evaluate, compare, files, files.plot)


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
    compare: CompareOptions,
    files: TableFiles,
) -> None:
    """Visual Genome (VG150): recall, mean recall and zero-shot recall, with and without graph constraint (ng-)."""
    from sgpipe.evaluation.benchmarks.evaluate_files import evaluate_graph_files
    from sgpipe.evaluation.benchmarks.evaluate_model import evaluate_graphs_model

    def evaluate(other: Path | None) -> EvaluationResult:
        if paths := _files(predictions, annotations, model, other):
            if mode is None:
                raise UserError("give --mode predcls, sgcls or sgdet: what the model was given")
            return evaluate_graph_files(*paths, mode.value, classes)
        if mode and mode is not GraphMode.SGDET:
            raise UserError(f"--mode {mode.value}: with --model the mode is sgdet, as the model detects its own boxes")
        return evaluate_graphs_model(_model_run(model, inference, annotations, classes, other))

    show(evaluate, compare, files)


@app.command(cls=EvalCommand)
@with_option_groups
def labels(
    *,
    pred: Annotated[
        Path, typer.Option(help="Folder of a run of `sgpipe generate`, or its object store.", callback=reads_run)
    ],
    truth: GroundTruthFolder = None,
    wanted: Annotated[
        Path | None,
        typer.Option(
            help="Shards with the relations that recall counts. Default: all of the ground truth.",
            callback=reads_run,
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
    compare: CompareOptions,
    files: ResultFiles,
) -> None:
    """Compare a run's relations with ground truth: precision, recall and AP, by threshold, predicate and frequency."""
    from sgpipe.evaluation.label_quality.comparison import label_quality
    from sgpipe.evaluation.label_quality.report import label_report
    from sgpipe.evaluation.label_quality.synonyms import load_predicate_synonyms
    from sgpipe.files.stored_files import shown_path
    from sgpipe.storage.run_folder import GroundTruth

    own = _ground_truth(pred, truth)
    ground_truth = GroundTruth(own.relations, wanted or own.required, image_data or own.image_data)
    texts = load_predicate_synonyms(synonyms) if synonyms else None

    def evaluate(other: Path | None) -> EvaluationResult:
        run = other or pred
        quality = label_quality(run, ground_truth, source=source.value, threshold=threshold, synonyms=texts, iou=iou)
        truths = {"truth": ground_truth.relations, "wanted": ground_truth.required}
        paths = {"pred": run, **truths, "synonyms": synonyms, "image_data": ground_truth.image_data}
        return label_report(quality, iou=iou, **{name: str(shown_path(path)) for name, path in paths.items() if path})

    show(evaluate, compare, files, files.plot)


@app.command(cls=GroupedCommand)
@with_option_groups
def boxes(
    *,
    pred: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run of `sgpipe generate` or its object store, COCO results file, or predictions.",
            callback=reads_place,
        ),
    ],
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Run or import with boxes, or COCO instances file. Default: the run's own, if any.",
            callback=reads_place,
        ),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Minimum score for precision and recall. Default: the run's own.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print a row for each class, too.")] = False,
    compare: CompareOptions,
    files: ResultFiles,
) -> None:
    """Compare detected boxes with ground truth: COCO's AP and AR, precision and recall, and the best F1."""
    from sgpipe.evaluation.box_quality.report import evaluate_boxes, own_threshold

    known = truth or _ground_truth(pred).relations
    level = own_threshold(pred) if threshold is None else threshold  # the same for what it is compared with
    show(lambda run: evaluate_boxes(run or pred, known, level), compare, files, files.plot, per_class=per_class)


def _ground_truth(run: Path, truth: Path | None = None) -> GroundTruth:
    """The ground truth that is given, or the run's own. Raises UserError: there is neither."""
    from sgpipe.storage.run_folder import GroundTruth, RunFolder

    own = RunFolder(run).ground_truth if truth is None else GroundTruth(truth)
    if own is None:
        raise UserError(f"{run} has no ground truth of its own: give --truth")
    return own


def _files(
    predictions: Path | None, annotations: Path | None, model: ModelOptions, other: Path | None
) -> tuple[Path, Path] | None:
    """The predictions (or the other ones) and annotations; None if a model is to be evaluated.

    Raises UserError: neither is given.
    """
    if predictions and annotations and not model.model and not model.data:
        return other or predictions, annotations
    if predictions or not model.model or not model.data:
        raise UserError("give --predictions and --annotations, or --model and --data")
    return None


def _model_run(
    model: ModelOptions,
    inference: InferenceOptions,
    annotations: Path | None = None,
    classes: Path | None = None,
    other: Path | None = None,
) -> ModelRun:
    from sgpipe.evaluation.benchmarks.evaluate_model import ModelRun

    assert model.model is not None
    assert model.data is not None
    arguments = inference.as_arguments()
    return ModelRun(model=other or model.model, data=model.data, annotations=annotations, classes=classes, **arguments)
