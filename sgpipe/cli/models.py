"""Commands of models: `sgpipe train`, `convert`, `reproduce`, `predict`, `score`, and `eval …` for
each benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sgpipe.cli import options as cli
from sgpipe.cli.repeated import CommandOfSingleValues
from sgpipe.errors import UserError
from sgpipe.utils import LARGEST_SEED, console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.evaluation.benchmarks import ModelRun, PredictionFiles
    from sgpipe.evaluation.result import EvaluationResult
    from sgpipe.training.recipe import DataConfig

LAYOUT = "layout"  # what `train` makes without a recipe


_Benchmark = Literal["hico", "vcoco", "openimages", "vg"]

app = typer.Typer(
    no_args_is_help=True,
    help="""Evaluate predictions as the official evaluators do.

Examples:

  sgpipe eval hico --predictions predictions.json --annotations test_hico.json
""",
)


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    data: Annotated[
        list[str] | None, cli.option("Shards: FOLDER, FOLDER@WEIGHT. Repeatable.", panel=cli.DATA)
    ] = None
    val: Annotated[
        list[str] | None, cli.option("Shards to validate on. Repeatable.", panel=cli.DATA)
    ] = None
    judgements: Annotated[
        list[str] | None, cli.option("Judged run, for a tagger. Repeatable.", panel=cli.DATA)
    ] = None
    images: cli.MovedImages = None
    calibration: cli.CalibrationFile = None
    precision: cli.ExpectedPrecision = None
    certified: cli.Certified = False

    def applied_to(self, data: DataConfig, limit: int | None) -> DataConfig:
        from sgpipe.training.recipe import shards_options
        from sgpipe.utils.config_file import changed

        judged = [
            {**option, "judged": True}
            for option in shards_options(self.judgements or (), self.images)
        ]
        shards = (
            shards_options(self.data, self.images)
            if self.data
            else [each.model_dump() for each in data.train]
        )
        settings = changed(
            data,
            train=[*shards, *judged] if self.data or judged else None,
            val=shards_options(self.val, self.images) if self.val else None,
            calibration=self.calibration,
            precision=self.precision,
            limit=limit,
        )
        if not self.certified:
            return settings
        if settings.calibration is not None:
            raise UserError("--certified chooses the relations: leave out --calibration")
        runs = [part.shards for part in settings.train if not part.judged]
        return changed(settings, threshold=cli.certified_threshold(runs))


def train(
    *,
    recipe: Annotated[
        str,
        typer.Argument(help="Packaged recipe (tagger, pretrain, hico …), layout, or YAML file."),
    ],
    out: Annotated[
        Path | None, cli.writes_folder("Folder for the model; a training in it is resumed.")
    ] = None,
    shards: ShardsOptions,
    init: Annotated[
        str | None,
        cli.reads_model("Model to start from: folder, store, hub id, official .pth or miniworld."),
    ] = None,
    miniature: Annotated[
        bool, cli.option("A small model, for a laptop.", "--miniature", panel=cli.MODELS)
    ] = False,
    epochs: Annotated[int | None, cli.option("Passes over the training data.", min=1)] = None,
    steps: Annotated[int | None, cli.option("Steps to train, instead of --epochs.", min=1)] = None,
    batch: Annotated[int | None, cli.option("Images per step, over all workers.", min=1)] = None,
    limit: cli.Limit = None,
    seed: cli.Seed = None,
    workers: Annotated[
        int | None, cli.option("Processes; Ray starts several.", min=1, panel=cli.COMPUTE)
    ] = None,
    gpus: Annotated[
        float | None, cli.option("GPUs per worker, 0 to 1.", min=0, max=1, panel=cli.COMPUTE)
    ] = None,
    ray_address: cli.RayAddress = None,
    plan: Annotated[
        bool, cli.option("Measure a few steps: time, memory, days. Writes nothing.", "--plan")
    ] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Train a tagger, a detector or a layout model on shards.

    A layout model (`layout`) learns in seconds to minutes from boxes and
    annotated relations; no image is opened.

    Examples:
      sgpipe train layout --data vg/ --out layout-model/
      sgpipe train tagger --data vg/ --init detector/ --out tagger/
      sgpipe train tagger --miniature --data miniworld-relations/ --out small-tagger/
      sgpipe train tagger --data vg/ --judgements run/ --init detector/ --out tagger/
      sgpipe train one-gpu/tagger --data vg/ --init detector/ --plan
    """
    from sgpipe.training.metrics import print_training
    from sgpipe.training.recipe import load_train_recipe
    from sgpipe.utils.config_file import changed, parse_set

    if out is None and not plan:
        raise UserError("pass --out, the folder for the model, or --plan")
    if recipe == LAYOUT and out is not None:
        others: dict[str, Any] = {
            "--init": init,
            "--miniature": miniature,
            "--steps": steps,
            "--batch": batch,
            "--set": assign,
        }
        others |= {
            "--workers": workers,
            "--gpus": gpus,
            "--ray-address": ray_address,
            "--plan": plan,
        }
        _train_layout(out, shards, others, limit=limit, seed=seed, epochs=epochs, json_=json_)
        return
    if epochs is not None and steps is not None:
        raise UserError("--epochs and --steps both say when the training ends; pass one of them")
    loaded = load_train_recipe(recipe, parse_set(assign or []), miniature=miniature)
    optimisation = changed(loaded.optimisation, epochs=epochs, steps=steps, batch=batch)
    if epochs is not None:
        optimisation = replace(optimisation, steps=None)  # also of a recipe that trains by steps
    loaded = changed(
        loaded,
        seed=seed,
        model=changed(loaded.model, init=init),
        data=shards.applied_to(loaded.data, limit),
        optimisation=optimisation,
        workers=changed(loaded.workers, count=workers, gpus=gpus, address=ray_address),
    )
    from sgpipe.training import run  # it imports PyTorch

    if out is None or plan:
        training = run.plan_training(loaded, console.Progress())
        if not cli.printed_json(json_, asdict(training)):
            run.print_training_plan(training, console.output())
        return
    summary = run.train(loaded, out, console.Progress())
    network = out / summary.network.name
    if cli.printed_json(json_, {**asdict(summary), "out": str(out), "network": str(network)}):
        return
    option = "--tagger" if summary.kind == "tagger" else "--init"
    print_training(summary, f"saved the model; use it with {option} {network}", console.output())


def _train_layout(
    out: Path,
    shards: ShardsOptions,
    others: Mapping[str, Any],
    *,
    limit: int | None,
    seed: int | None,
    epochs: int | None,
    json_: bool,
) -> None:
    """Train a layout model; `others`: options that are only for networks."""
    from sgpipe.training.layout import train_layout

    of_shards = {f"--{name}": value for name, value in vars(shards).items() if name != "data"}
    unused = [name for name, value in {**others, **of_shards}.items() if value]
    if unused:
        raise UserError(
            f"train layout takes --data, --out, --limit, --seed and --epochs: omit {unused[0]}"
        )
    if not shards.data:
        raise UserError("train layout needs --data, a run or import with relations")
    trained = train_layout(
        shards.data, out, console.Progress(), limit=limit, seed=seed or 0, epochs=epochs
    )
    if cli.printed_json(json_, {**asdict(trained), "out": str(out)}):
        return
    rows = {
        "images with relations": f"{trained.images:,} of {trained.of_images:,}",
        "pairs": f"{trained.pairs:,}",
        "predicates": f"{trained.predicates:,}",
        "time": console.duration(trained.seconds),
    }
    if trained.precision is not None and trained.recall is not None:
        held_out = f"pairs of {count(trained.held_out, 'image')} held out, at probability 0.5"
        rows[held_out] = f"precision {trained.precision:.1%}, recall {trained.recall:.1%}"
    console.print_rows("layout model", rows, console.output())
    cli.show(f"saved the model; use it with --tagger {out}")


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official .pth; with --as, a detector's.", exists=True)
    ],
    out: Annotated[
        Path, cli.writes_folder("Folder for config.json, model.safetensors and the tokenizer.")
    ],
    tokenizer: Annotated[
        str, cli.reads_model("RoBERTa (with --as) or its tokenizer.")
    ] = "roberta-base",
    gating: Annotated[
        str | None, cli.option("Fusion gate (VXAc or GLIP), if the checkpoint does not name it.")
    ] = None,
    verb_query: Annotated[
        str | None, cli.option("Type of relation query, if the checkpoint does not name it.")
    ] = None,
    kind: Annotated[
        str | None, cli.option("Make parseda, parsed, tagger or rlipv1 of a detector.", "--as")
    ] = None,
    queries: Annotated[
        int | None, cli.option("Keep only the first N queries, such as 128.")
    ] = None,
    first_rows: Annotated[
        bool, cli.option("--queries: by row, as the official code.", "--first-rows")
    ] = False,
    json_: cli.Json = False,
) -> None:
    """Convert an official checkpoint or a detector to a model.

    Examples:
      sgpipe convert RLIPv2_tagger.pth --out tagger/ --tokenizer roberta-base
    """
    from rlip_model.checkpoint import CheckpointError, TokenizerError, convert_detector
    from rlip_model.checkpoint import convert as run
    from sgpipe.files.model_cache import local_model

    tokenizer = local_model(tokenizer)
    parts: dict[str, list[str]] = {}
    try:
        if kind is None:
            run(checkpoint, out, tokenizer, gating, verb_query, queries, not first_rows)
        elif gating or verb_query or first_rows:
            raise UserError(
                "--gating, --verb-query and --first-rows are for official checkpoints, not for --as"
            )
        else:
            model = convert_detector(
                checkpoint, out, kind, tokenizer, 200 if queries is None else queries
            )
            kept = sorted({".".join(name.split(".")[:2]) for name in model.kept})
            parts = {"not_used_of_the_detector": list(model.unused), "not_from_the_detector": kept}
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    if cli.printed_json(json_, {"out": str(out), **parts}):
        return
    for what, names in parts.items():
        console.output().print(f"weights {what.replace('_', ' ')}: {', '.join(names) or 'none'}")
    console.output().print(f"wrote {out}")


def reproduce(
    ctx: typer.Context,
    paper: Annotated[Literal["rlipv2"], typer.Argument(help="The paper.")],
    out: Annotated[
        Path, cli.writes_folder("Folder for everything; steps that are done are skipped.")
    ],
    data: Annotated[
        Path | None, cli.option("Folder of datasets and weights.", exists=True, file_okay=False)
    ] = None,
    scale: Annotated[
        Literal["published", "one-gpu", "miniature"], cli.option("miniature: no data.")
    ] = "published",
    until: Annotated[str | None, cli.option("Last step to run.")] = None,
    dry_run: Annotated[
        bool, cli.option("Only print the commands and what is missing.", "--dry-run")
    ] = False,
    assign: cli.Settings = None,
    json_: cli.Json = False,
) -> None:
    """Reproduce a paper: run a list of sgpipe commands, from its downloads to its tables.

    The same command resumes it. Ends with a table beside the published figures,
    and OUT/report.html with the curves of all trainings.

    Examples:
      sgpipe reproduce rlipv2 --scale miniature --out small/
      sgpipe reproduce rlipv2 --scale one-gpu --data downloads/ --out rlipv2/
    """
    from rich.table import Table

    from sgpipe.cli import reproduction as steps

    loaded = steps.load_reproduction(paper, scale, assign or [])
    tasks = steps.make_tasks(loaded, data or Path("DATA"), out, until)
    root: Any = ctx.find_root().command
    if dry_run:
        shown = [
            {**vars(task.step), "command": task.command, "missing": task.missing} for task in tasks
        ]
        if not cli.printed_json(json_, {"note": loaded.note, "steps": shown}):
            cli.show(f"{loaded.title}. {loaded.note}")
            for number, task in enumerate(tasks, 1):
                cli.show(f"[{number}/{len(tasks)}] {task.step.name}: {task.step.gives}")
                cli.show(
                    "\n".join(
                        [f"  {task.command}", *(f"  missing: {file}" for file in task.missing)]
                    )
                )
        return

    def run(words: Sequence[str]) -> int:
        quiet = ["--quiet"] if console.QUIET in os.environ else []
        try:
            return root.main([*quiet, *words], prog_name="sgpipe", standalone_mode=False) or 0
        except SystemExit as end:
            return int(end.code or 0)

    state = steps.reproduce(loaded, tasks, out, run, console.Progress())
    if not cli.printed_json(json_, {"out": str(out), "note": loaded.note, "steps": state}):
        titles, rows = steps.figures(loaded, tasks, state)
        table = Table(
            *titles, title=f"{loaded.title}: percent, here and published", caption=loaded.note
        )
        for row in rows:
            table.add_row(*row)
        if rows:
            console.output().print(table)
        cli.show(f"wrote {out / steps.REPORT}")


Annotations = Annotated[Path | None, cli.reads_file("Annotation file; optional with --model.")]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """How a result is printed, the files that it is written to, and what it is compared with."""

    compare: Annotated[
        cli.Place | None, cli.reads_model("Print differences to this.", parser=cli.as_location)
    ] = None
    resamples: Annotated[
        int, cli.option("With --compare: random halves of the images.", min=10)
    ] = 1000
    seed: Annotated[int, cli.option("With --compare: random seed.", min=0, max=LARGEST_SEED)] = 0
    json: cli.Json = False
    json_file: Annotated[
        Path | None, cli.writes_file("Write the full result as JSON to this file.")
    ] = None
    csv: Annotated[Path | None, cli.writes_file("Write one line per class to this file.")] = None
    plot: Annotated[
        Path | None, cli.writes_file("Write the precision-recall curves to this SVG file.")
    ] = None

    def run_and_report(
        self, evaluate: Callable[[Path | None], EvaluationResult], *, per_class: bool = False
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
        for file, form in (
            (self.json_file, result.as_json),
            (self.csv, result.as_csv),
            (self.plot, result.as_svg),
        ):
            if file:
                write_result_text(file, form())


@dataclass(frozen=True, kw_only=True)
class InputOptions(cli.InferenceOptions):
    """A predictions file and annotations, or a trained model and the shards to run it on."""

    predictions: Annotated[
        Path | None, cli.reads_file("Predictions file, as in docs/formats.md.")
    ] = None
    model: Annotated[
        cli.Place | None, cli.reads_model("Trained model to run.", parser=cli.as_location)
    ] = None
    data: Annotated[
        cli.Place | None, cli.reads_stored("With --model: folder of shards, or their object store.")
    ] = None

    def given(
        self, annotations: Path | None, classes: Path | None = None, other: Path | None = None
    ) -> PredictionFiles | ModelRun:
        """Return what is evaluated; `other`: instead of predictions or model. Raises UserError: too
        few options.
        """
        from sgpipe.evaluation.benchmarks import ModelRun, PredictionFiles

        if self.predictions and annotations and not self.model and not self.data:
            return PredictionFiles(other or self.predictions, annotations, classes)
        if self.predictions or not self.model or not self.data:
            raise UserError("pass --predictions and --annotations, or --model and --data")
        how = {name: value for name, value in vars(self).items() if name != "predictions"}
        return ModelRun(
            **how | {"model": other or self.model, "annotations": annotations, "classes": classes}
        )


def hico(
    *,
    annotations: Annotations = None,
    setting: Annotated[
        Literal["default", "NF", "UC-RF", "UC-NF", "UO"], cli.option("Groups of classes.")
    ] = "default",
    known_object: Annotated[
        bool, cli.option("Evaluate a class on images with its object.", "--known-object")
    ] = False,
    pair_nms: Annotated[
        bool, cli.option("Suppress pairs that overlap better ones.", "--pair-nms")
    ] = False,
    zero_shot: Annotated[
        bool, cli.option("--model: drop subjects that are not persons.", "--zero-shot")
    ] = False,
    classes: cli.Classes = None,
    inputs: InputOptions,
    report: ReportOptions,
) -> None:
    """HICO-DET: mean average precision over full, rare and non-rare classes, or over unseen and
    seen classes.

    Examples:
      sgpipe eval hico --predictions predictions.json --annotations test_hico.json --json
    """
    from sgpipe.evaluation.benchmarks import score_hico

    how = {"known_object": known_object, "pair_nms": pair_nms, "zero_shot": zero_shot}
    report.run_and_report(
        lambda other: score_hico(inputs.given(annotations, classes, other), setting=setting, **how)
    )


def vcoco(
    *,
    annotations: Annotated[Path, cli.reads_file("V-COCO's own annotations: vcoco_test.json.")],
    coco: Annotated[
        Path, cli.reads_file("The COCO instances they refer to: instances_vcoco_all_2014.json.")
    ],
    possible: Annotated[
        cli.Place | None, cli.reads_stored("--model: training shards; 0 for what they lack.")
    ] = None,
    inputs: InputOptions,
    report: ReportOptions,
) -> None:
    """V-COCO: role AP in scenarios 1 and 2, and agent AP.

    Examples:
      sgpipe eval vcoco --predictions predictions.json --annotations vcoco_test.json --coco
      instances.json
    """
    from sgpipe.evaluation.benchmarks import score_vcoco

    report.run_and_report(
        lambda other: score_vcoco(inputs.given(annotations, other=other), coco, possible)
    )


def openimages(
    *,
    annotations: Annotations = None,
    nms: Annotated[
        Literal["none", "published", "repaired"], cli.option("NMS, as published or repaired.")
    ] = "none",
    inputs: InputOptions,
    report: ReportOptions,
) -> None:
    """Open Images V6: R@50, wmAP of relations and of phrases, and score_wtd.

    Examples:
      sgpipe eval openimages --predictions predictions.json --annotations vrd-test-anno.json
    """
    from sgpipe.evaluation.benchmarks import score_open_images

    report.run_and_report(
        lambda other: score_open_images(inputs.given(annotations, other=other), nms)
    )


def vg(
    *,
    mode: Annotated[
        Literal["predcls", "sgcls", "sgdet"] | None, cli.option("What the model was given.")
    ] = None,
    annotations: Annotations = None,
    classes: cli.Classes = None,
    inputs: InputOptions,
    report: ReportOptions,
) -> None:
    """Visual Genome (VG150): recall, mean recall and zero-shot recall, with and without graph
    constraint (ng-).

    Examples:
      sgpipe eval vg --predictions predictions.json --annotations vg150.json --mode sgdet
    """
    from sgpipe.evaluation.benchmarks import score_graphs

    if (mode is None) if inputs.model is None else (mode not in (None, "sgdet")):
        raise UserError(
            "pass --mode predcls, sgcls or sgdet: what the model was given; with --model it is"
            " sgdet"
        )
    if report.plot:
        raise UserError(
            "--plot: scene graphs are scored by recall, without precision-recall curves"
        )
    report.run_and_report(
        lambda other: score_graphs(inputs.given(annotations, classes, other), mode or "sgdet")
    )


def labels(
    *,
    pred: Annotated[
        cli.Place, cli.reads_stored("Folder of a run of `sgpipe generate`, or its object store.")
    ],
    truth: cli.GroundTruthFolder = None,
    targets: Annotated[
        cli.Place | None, cli.reads_stored("Shards with the target relations. Default: all.")
    ] = None,
    source: Annotated[
        Literal["relations", "candidates"], cli.option("Relations, or all candidates.")
    ] = "relations",
    threshold: Annotated[
        float, cli.option("Minimum confidence of the relations that count.")
    ] = 0.2,
    iou: Annotated[float, cli.option("Minimum IoU of matching boxes.")] = 0.5,
    synonyms: Annotated[
        Path | None,
        cli.reads_file("YAML or JSON: lists of texts that mean a predicate, by predicate."),
    ] = None,
    image_data: cli.ImageData = None,
    report: ReportOptions,
) -> None:
    """Compare a run's relations with ground truth: precision, recall and AP, by threshold,
    predicate and frequency.

    Examples:
      sgpipe eval labels --pred coco-relations/ --truth vg/ --image-data image_data.json
    """
    from sgpipe.evaluation.label_quality import label_quality, label_report
    from sgpipe.sources.vocabulary import load_predicate_synonyms

    ground_truth = cli.ground_truth_for(pred, truth, image_data, targets)
    texts = load_predicate_synonyms(synonyms) if synonyms else None

    def evaluate(other: Path | None) -> EvaluationResult:
        run = other or pred
        quality = label_quality(
            run, ground_truth, source=source, threshold=threshold, synonyms=texts, iou=iou
        )
        truths = {"truth": ground_truth.relations, "targets": ground_truth.required}
        paths = {"pred": run, **truths, "synonyms": synonyms, "image_data": ground_truth.image_data}
        return label_report(
            quality, iou=iou, **{name: str(path) for name, path in paths.items() if path}
        )

    report.run_and_report(evaluate)


def boxes(
    *,
    run: Annotated[
        cli.Place, cli.stored_argument("Run, its object store, or COCO results.", "RUN")
    ],
    truth: Annotated[
        cli.Place | None, cli.reads_stored("Run, import or COCO instances. Default: its own.")
    ] = None,
    threshold: Annotated[float | None, cli.option("Minimum score. Default: the run's own.")] = None,
    per_class: Annotated[
        bool, cli.option("Print a row for each class, too.", "--per-class")
    ] = False,
    report: ReportOptions,
) -> None:
    """Compare detected boxes with ground truth: COCO's AP and AR, precision and recall, and the
    best F1.

    Examples:
      sgpipe eval boxes detected/ --truth instances_val2017.json --per-class
      sgpipe eval boxes detected/ --truth coco/ --compare detected-by-another/
    """
    from sgpipe.evaluation.box_quality import evaluate_boxes, own_threshold

    known = truth or cli.ground_truth_for(run).relations
    level = (
        own_threshold(run) if threshold is None else threshold
    )  # the same for what it is compared with
    report.run_and_report(
        lambda other: evaluate_boxes(other or run, known, level), per_class=per_class
    )


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


for _benchmark in (hico, vcoco, openimages, vg, labels, boxes):
    app.command(cls=CommandOfSingleValues)(cli.command(_benchmark))
