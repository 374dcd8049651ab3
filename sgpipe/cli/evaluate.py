"""`sgpipe eval`: predictions and models by each benchmark's own measure, a run by ground truth."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.cli.open_group import OpenGroup
from sgpipe.cli.repeated import CommandOfSingleValues
from sgpipe.errors import UserError
from sgpipe.plugins import failures_told, load_instance
from sgpipe.utils import LARGEST_SEED, console

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks import ModelRun, PredictionFiles
    from sgpipe.evaluation.result import EvaluationResult


Annotations = Annotated[Path | None, declare.reads_file("Annotation file; optional with --model.")]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a result is printed, the files that it is written to, and what it is compared with."""

    compare: Annotated[
        declare.Place | None,
        declare.reads_model("Print differences to this.", parser=declare.as_location),
    ] = None
    resamples: Annotated[
        int, declare.option("With --compare: random halves of the images.", min=10)
    ] = 1000
    seed: Annotated[
        int, declare.option("With --compare: random seed.", min=0, max=LARGEST_SEED)
    ] = 0
    json: cli.Json = False
    json_file: Annotated[
        Path | None, declare.writes_file("Write the full result as JSON to this file.")
    ] = None

    def files(self, result: EvaluationResult) -> list[tuple[Path | None, Callable[[], str]]]:
        """Return what may be written: the file, and what makes its text."""
        return [(self.json_file, result.as_json)]

    def run_and_report(
        self,
        evaluate: Callable[[declare.Place | None], EvaluationResult],
        *,
        per_class: bool = False,
    ) -> None:
        """Evaluate, compare, print and write; `evaluate` takes what is evaluated instead of the
        first, if anything.
        """
        from sgpipe.storage.run_folder import write_result_text

        result = evaluate(None)
        if self.compare is not None:
            other = evaluate(self.compare)
            result = result.compared_with(other, str(self.compare), self.resamples, self.seed)
        if self.json:
            print(result.as_json(), end="")
        else:
            result.print(console.output(), per_class=per_class)
        for file, text in self.files(result):
            if file:
                write_result_text(file, text())


@dataclass(frozen=True, kw_only=True)
class ClassReportOptions(ReportOptions):
    """The same for results that have classes and curves."""

    csv: Annotated[Path | None, declare.writes_file("Write one line per class to this file.")] = (
        None
    )
    plot: Annotated[
        Path | None, declare.writes_file("Write the precision-recall curves to this SVG file.")
    ] = None

    def files(self, result: EvaluationResult) -> list[tuple[Path | None, Callable[[], str]]]:
        return [
            *super().files(result),
            (self.csv, result.as_csv),
            (self.plot, result.as_svg),
        ]


@dataclass(frozen=True, kw_only=True)
class InputOptions(cli.InferenceOptions):
    """A predictions file and annotations, or a trained model and the shards to run it on."""

    predictions: Annotated[
        Path | None, declare.reads_file("Predictions file, as in docs/formats.md.")
    ] = None
    model: Annotated[
        declare.Place | None,
        declare.reads_model("Trained model to run.", parser=declare.as_location),
    ] = None
    data: Annotated[
        declare.Place | None,
        declare.reads_stored("With --model: folder of shards, or their object store."),
    ] = None

    def to_evaluate(
        self,
        annotations: Path | None,
        classes: Path | None = None,
        other: declare.Place | None = None,
    ) -> PredictionFiles | ModelRun:
        """Return what is evaluated; `other`: instead of predictions or model.

        Raises:
            UserError: too few options.
        """
        from sgpipe.evaluation.benchmarks import ModelRun, PredictionFiles

        if self.predictions and annotations and not self.model and not self.data:
            return PredictionFiles(other or self.predictions, annotations, classes)
        if self.predictions or not self.model or not self.data:
            raise UserError("pass --predictions and --annotations, or --model and --data")
        values = vars(self) | {"model": other or self.model}
        del values["predictions"]
        return ModelRun(**values, annotations=annotations, classes=classes)


def hico(
    *,
    annotations: Annotations = None,
    setting: Annotated[
        Literal["default", "NF", "UC-RF", "UC-NF", "UO"], declare.option("Groups of classes.")
    ] = "default",
    known_object: Annotated[
        bool, declare.option("Evaluate a class on images with its object.", "--known-object")
    ] = False,
    pair_nms: Annotated[
        bool, declare.option("Suppress pairs that overlap better ones.", "--pair-nms")
    ] = False,
    zero_shot: Annotated[
        bool, declare.option("--model: drop subjects that are not persons.", "--zero-shot")
    ] = False,
    classes: cli.Classes = None,
    inputs: InputOptions,
    report: ClassReportOptions,
) -> None:
    """HICO-DET: mean average precision over full, rare and non-rare classes, or over unseen and
    seen classes.

    Examples:
      sgpipe eval hico --predictions predictions.json --annotations test_hico.json --json
    """
    from sgpipe.evaluation.benchmarks import score_hico

    def evaluate(other: declare.Place | None) -> EvaluationResult:
        return score_hico(
            inputs.to_evaluate(annotations, classes, other),
            setting=setting,
            known_object=known_object,
            pair_nms=pair_nms,
            zero_shot=zero_shot,
        )

    report.run_and_report(evaluate)


def vcoco(
    *,
    annotations: Annotated[Path, declare.reads_file("V-COCO's own annotations: vcoco_test.json.")],
    coco: Annotated[
        Path, declare.reads_file("The COCO instances they refer to: instances_vcoco_all_2014.json.")
    ],
    possible: Annotated[
        declare.Place | None,
        declare.reads_stored("--model: training shards; 0 for what they lack."),
    ] = None,
    inputs: InputOptions,
    report: ClassReportOptions,
) -> None:
    """V-COCO: role AP in scenarios 1 and 2, and agent AP.

    Examples:
      sgpipe eval vcoco --predictions predictions.json --annotations vcoco_test.json --coco
      instances.json
    """
    from sgpipe.evaluation.benchmarks import score_vcoco

    report.run_and_report(
        lambda other: score_vcoco(inputs.to_evaluate(annotations, other=other), coco, possible)
    )


def openimages(
    *,
    annotations: Annotations = None,
    nms: Annotated[
        Literal["none", "published", "repaired"], declare.option("NMS, as published or repaired.")
    ] = "none",
    inputs: InputOptions,
    report: ClassReportOptions,
) -> None:
    """Open Images V6: R@50, wmAP of relations and of phrases, and score_wtd.

    Examples:
      sgpipe eval openimages --predictions predictions.json --annotations vrd-test-anno.json
    """
    from sgpipe.evaluation.benchmarks import score_open_images

    report.run_and_report(
        lambda other: score_open_images(inputs.to_evaluate(annotations, other=other), nms)
    )


def vg(
    *,
    mode: Annotated[
        Literal["predcls", "sgcls", "sgdet"] | None, declare.option("What the model was given.")
    ] = None,
    annotations: Annotations = None,
    classes: cli.Classes = None,
    inputs: InputOptions,
    report: ClassReportOptions,
) -> None:
    """Visual Genome (VG150): recall, mean recall and zero-shot recall, with and without graph
    constraint (ng-).

    Examples:
      sgpipe eval vg --predictions predictions.json --annotations vg150.json --mode sgdet
    """
    from sgpipe.evaluation.benchmarks import score_graphs

    allowed = ("predcls", "sgcls", "sgdet") if inputs.model is None else (None, "sgdet")
    if mode not in allowed:
        raise UserError(
            "pass --mode predcls, sgcls or sgdet: what the model was given; with --model it is"
            " sgdet"
        )
    if report.plot:
        raise UserError(
            "--plot: scene graphs are scored by recall, without precision-recall curves"
        )
    report.run_and_report(
        lambda other: score_graphs(inputs.to_evaluate(annotations, classes, other), mode or "sgdet")
    )


def labels(
    *,
    pred: Annotated[
        declare.Place,
        declare.option(
            "Run of `sgpipe generate`, or several: 'labels/part-*'.",
            panel=declare.DATA,
            parser=declare.as_location,
            callback=declare.stored_runs,
        ),
    ],
    truth: cli.GroundTruthFolder = None,
    targets: Annotated[
        declare.Place | None,
        declare.reads_stored("Shards with the target relations. Default: all."),
    ] = None,
    source: Annotated[
        Literal["relations", "candidates"], declare.option("Relations, or all candidates.")
    ] = "relations",
    threshold: Annotated[
        float, declare.option("Minimum confidence of the relations that count.")
    ] = 0.2,
    iou: Annotated[float, declare.option("Minimum IoU of matching boxes.")] = 0.5,
    synonyms: Annotated[
        Path | None,
        declare.reads_file("YAML or JSON: lists of texts that mean a predicate, by predicate."),
    ] = None,
    image_data: cli.ImageData = None,
    report: ClassReportOptions,
) -> None:
    """Compare a run's relations with ground truth: precision, recall and AP, by threshold,
    predicate and frequency.

    Examples:
      sgpipe eval labels --pred coco-relations/ --truth vg/ --image-data image_data.json
    """
    from sgpipe.evaluation.label_quality import label_quality, label_report
    from sgpipe.sources.vocabulary import load_predicate_synonyms

    ground_truth = cli.ground_truth_for(pred, truth, image_data, targets)
    words = load_predicate_synonyms(synonyms) if synonyms else None

    def evaluate(other: declare.Place | None) -> EvaluationResult:
        run = other or pred
        quality = label_quality(
            run, ground_truth, source=source, threshold=threshold, synonyms=words, iou=iou
        )
        paths = {
            "pred": run,
            "truth": ground_truth.relations,
            "targets": ground_truth.required,
            "synonyms": synonyms,
            "image_data": ground_truth.image_data,
        }
        texts = {name: str(path) for name, path in paths.items() if path}
        return label_report(quality, iou=iou, **texts)

    report.run_and_report(evaluate)


def boxes(
    *,
    run: Annotated[
        declare.Place, declare.stored_argument("Run, its object store, or COCO results.", "RUN")
    ],
    truth: Annotated[
        declare.Place | None,
        declare.reads_stored("Run, import or COCO instances. Default: its own."),
    ] = None,
    threshold: Annotated[
        float | None, declare.option("Minimum score. Default: the run's own.")
    ] = None,
    per_class: Annotated[
        bool, declare.option("Print a row for each class, too.", "--per-class")
    ] = False,
    report: ClassReportOptions,
) -> None:
    """Compare detected boxes with ground truth: COCO's AP and AR, precision and recall, and the
    best F1.

    Examples:
      sgpipe eval boxes detected/ --truth instances_val2017.json --per-class
      sgpipe eval boxes detected/ --truth coco/ --compare detected-by-another/
    """
    from sgpipe.evaluation.box_quality import evaluate_boxes, own_threshold

    ground_truth = truth or cli.ground_truth_for(run).relations
    if threshold is None:
        threshold = own_threshold(run)  # the same for what it is compared with
    report.run_and_report(
        lambda other: evaluate_boxes(other or run, ground_truth, threshold), per_class=per_class
    )


class _Evaluators(OpenGroup):
    """A command for each benchmark, and for every evaluator of the user's own."""

    kind = "evaluator"

    @staticmethod
    def function_of(
        reference: str, options: Sequence[inspect.Parameter] = ()
    ) -> Callable[..., None]:
        def evaluate(
            *,
            annotations: Annotations = None,
            classes: cli.Classes = None,
            inputs: InputOptions,
            report: ReportOptions,
            **values: object,
        ) -> None:
            from sgpipe.evaluation.benchmarks import score_plugin

            report.run_and_report(
                lambda other: score_plugin(
                    inputs.to_evaluate(annotations, classes, other), reference, values
                )
            )

        evaluate.__doc__ = f"Evaluate by {reference}, which is not a part of sgpipe."
        return declare.command(declare.with_options(evaluate, options))

    @staticmethod
    def options_of(reference: str) -> Sequence[inspect.Parameter]:
        from sgpipe.evaluation.plugin import Evaluator

        with failures_told("evaluator", reference):
            return load_instance("evaluator", reference, Evaluator).options


app = typer.Typer(
    cls=_Evaluators,
    no_args_is_help=True,
    help="""Evaluate predictions as the official evaluators do.

By an Evaluator of your own: package.module:NAME in place of a command.

Examples:

  sgpipe eval hico --predictions predictions.json --annotations test_hico.json
""",
)


for _benchmark in (hico, vcoco, openimages, vg, labels, boxes):
    app.command(cls=CommandOfSingleValues)(declare.command(_benchmark))
