"""The command line, thin: parse arguments, call one function, print what it returns.

Exit codes: 0 done; 1 the work could not be finished (what is committed stays); 2 bad input or usage; 3 done,
but every image is an error row; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sgpipe.cli.doctor import doctor
from sgpipe.cli.evaluate import app as eval_app
from sgpipe.cli.help import GroupedCommand, HelpfulGroup
from sgpipe.cli.imports import app as import_app
from sgpipe.cli.label import label
from sgpipe.cli.predict import predict
from sgpipe.cli.runs import export, fetch, score, stats, verify
from sgpipe.errors import EngineError, UserError, refusal
from sgpipe.sources.formats import guess_split
from sgpipe.utils import __version__, console

if TYPE_CHECKING:
    from sgpipe.storage.manifest import Summary


_out, _err = console.output(), console.errors()

Json = Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")]

_GO_ON = "What is committed stays; the same command goes on from there."
_START_AGAIN = "The same command starts again."
_GOING_ON = ("generate", "import", "score", "train")
EXIT_UNFINISHED, EXIT_BAD_INPUT, EXIT_ALL_FAILED, EXIT_INTERRUPTED = 1, 2, 3, 130


class _Group(HelpfulGroup):
    """The commands, with every error a user is meant to see turned into one line and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except UserError as error:
            _fail(f"error: {error}", EXIT_BAD_INPUT)
        except EngineError as error:
            _fail(f"error: {error}\n{_GO_ON}", EXIT_UNFINISHED)
        except KeyboardInterrupt:
            remark = _GO_ON if ctx.invoked_subcommand in _GOING_ON else _START_AGAIN
            _fail(f"interrupted. {remark}", EXIT_INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_UNFINISHED)
        except OSError as error:
            _fail(f"error: {refusal(error)}", EXIT_UNFINISHED)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


app.add_typer(import_app, name="import")
app.add_typer(eval_app, name="eval")
app.command(cls=GroupedCommand)(label)
app.command()(predict)
app.command()(stats)
app.command()(score)
app.command()(verify)
app.command()(fetch)
app.command()(export)
app.command()(doctor)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes, only results.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tracebacks of internal errors.")] = False,
) -> None:
    """Turn any object-detection dataset into a scene-graph dataset.

    Results go to standard output, all else to standard error. NO_COLOR=1 turns colours off. Exit codes: 0 done, 1 not
    finished, 2 bad input, 3 every image failed, 130 interrupted.
    """
    os.environ.pop(console.QUIET, None)
    if quiet:
        os.environ[console.QUIET] = "1"
    if verbose:
        sys.excepthook = sys.__excepthook__
    if version:
        print(__version__)
        raise typer.Exit()


@app.command(cls=GroupedCommand)
def generate(
    recipe: Annotated[
        str, typer.Argument(help="A packaged recipe (miniworld, coco, objects365, folder) or a YAML file.")
    ] = "miniworld",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the shards, by default NAME-relations; a run in it goes on.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Object store for the shards, such as s3://bucket/labels; --out keeps the rest.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that the recipe's paths are relative to.")] = None,
    images: Annotated[Path | None, typer.Option(help="Image folder, instead of the recipe's splits.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="Annotation file that goes with --images.")] = None,
    captions: Annotated[Path | None, typer.Option(help="COCO captions file; no captioner runs then.")] = None,
    split: Annotated[str | None, typer.Option(help="Name of the split; guessed from --annotations.")] = None,
    detector: Annotated[str | None, typer.Option(help="Detector for images without annotations.")] = None,
    captioner: Annotated[str | None, typer.Option(help="BLIP captioning model: folder or hub id.")] = None,
    tagger: Annotated[str | None, typer.Option(help="R-Tagger made by `sgpipe convert` or training.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the caption sampling.")] = None,
    retry_failed: Annotated[bool, typer.Option(help="Do the error rows of the run again, too.")] = False,
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to use, such as auto.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, such as tag.threshold=0.1. Repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Label the images of a dataset or a folder with relations.

    Without arguments 200 images are drawn and labelled by the tiny models that ship with sgpipe; others by
    --set source.drawn.seed=1.
    """
    from sgpipe.generation.run import generate as run
    from sgpipe.recipe import load_recipe
    from sgpipe.records import TRAINED_ON
    from sgpipe.utils.config_file import parse_set
    from sgpipe.utils.console import Progress

    overrides = _source_overrides(images, annotations, captions, split)
    options = {
        "source.root": root,
        "detect.detector": detector,
        "caption.captioner": captioner,
        "tag.tagger": tagger,
        "limit": limit,
        "seed": seed,
        "engine.address": ray_address,
        "engine.store": store,
    }
    overrides |= {key: value for key, value in options.items() if value is not None}
    overrides |= parse_set(assign or [])
    _heed_signals()
    loaded = load_recipe(recipe, overrides)
    summary = run(
        loaded, out or Path(f"{loaded.name}-relations"), Progress(console.progress()), retry_failed=retry_failed
    )
    _report(summary, max(TRAINED_ON, loaded.tag.threshold), json_, loaded.engine.store)
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(EXIT_ALL_FAILED)


def _report(summary: Summary, threshold: float, json_: bool, stored_in: str | None) -> None:
    """What a run holds, and, of drawn images whose labels are in the folder, how good it is."""
    from sgpipe.evaluation.label_quality.report import known_quality, print_quality
    from sgpipe.generation.summary import print_summary

    quality = known_quality(summary.root, threshold) if stored_in is None else {}
    if json_:
        known = {name: asdict(own.at_threshold) for name, own in quality.items()}
        print(json.dumps(summary.as_json() | ({"quality": known} if known else {}), indent=2))
    else:
        print_summary(summary, _out)
        if quality:
            print_quality(quality, _out)


def _source_overrides(
    images: Path | None, annotations: Path | None, captions: Path | None, split: str | None
) -> dict[str, Any]:
    if images is None:
        if annotations is not None or captions is not None or split is not None:
            raise UserError("--annotations, --captions and --split need --images")
        return {}
    config = {"annotations": annotations, "images": images, "captions": captions}
    overrides: dict[str, Any] = {
        "source.splits": {split or (guess_split(annotations) if annotations else "all"): config}
    }
    if captions is not None:
        overrides["caption.captioner"] = None
    return overrides


@app.command()
def parse(
    model: Annotated[str | None, typer.Option(help="spaCy model; the best one installed by default.")] = None,
) -> None:
    """Turn captions into triplets.

    Reads standard input, a caption a line, and prints a line of JSON for each.
    """
    from sgpipe.recipe import ParseConfig
    from sgpipe.stages.parse.stage import CaptionParser, parse_lines

    parser = CaptionParser(ParseConfig(model=model))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for result in parse_lines(sys.stdin, parser):
        print(json.dumps(result, ensure_ascii=False))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official RLIP checkpoint (.pth), or a detector with --as.")],
    out: Annotated[Path, typer.Option(help="Folder for config.json, model.safetensors and the tokenizer.")],
    tokenizer: Annotated[
        str, typer.Option(help="RoBERTa tokenizer, with --as the RoBERTa itself: folder or hub id.")
    ] = "roberta-base",
    gating: Annotated[str | None, typer.Option(help="Fusion gate, if the file does not tell (VXAc, GLIP).")] = None,
    verb_query: Annotated[str | None, typer.Option(help="Relation query, if the file does not tell.")] = None,
    kind: Annotated[
        str | None, typer.Option("--as", help="Start from a detector: parseda, parsed, tagger or rlipv1.")
    ] = None,
    queries: Annotated[int | None, typer.Option(help="Keep the first N queries, such as 128.")] = None,
    first_rows: Annotated[
        bool, typer.Option("--first-rows", help="Keep queries row by row, as the official code; else pair by pair.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Turn an official checkpoint or a detector into a model."""
    from rlip_model.checkpoint import CheckpointError, TokenizerError, convert_detector
    from rlip_model.checkpoint import convert as run

    parts: dict[str, list[str]] = {}
    try:
        if kind is None:
            run(checkpoint, out, tokenizer, gating, verb_query, queries, not first_rows)
        else:
            if gating or verb_query or first_rows:
                raise UserError("--gating, --verb-query and --first-rows are for official checkpoints, not for --as")
            made = convert_detector(checkpoint, out, kind, tokenizer, 200 if queries is None else queries)
            new = sorted({".".join(name.split(".")[:2]) for name in made.kept})
            parts = {"not used of the detector": list(made.unused), "not from the detector": new}
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    if json_:
        print(
            json.dumps({"out": str(out), **{name.replace(" ", "_"): found for name, found in parts.items()}}, indent=2)
        )
        return
    for name, found in parts.items():
        _out.print(f"{name}: {', '.join(found) or 'nothing'}")
    _out.print(f"wrote {out}")


@app.command(cls=GroupedCommand)
def train(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe (tagger, pretrain, hico …) or a YAML file.")],
    out: Annotated[Path, typer.Option(help="Folder for the network; an unfinished training in it goes on.")],
    data: Annotated[list[str] | None, typer.Option(help="Folder of shards, or FOLDER@WEIGHT. Repeatable.")] = None,
    val: Annotated[list[str] | None, typer.Option(help="Folder of shards to validate on. Repeatable.")] = None,
    images: Annotated[Path | None, typer.Option(help="Image folder of all shards, if they moved.")] = None,
    init: Annotated[str | None, typer.Option(help="Network to start from: folder, hub id or official .pth.")] = None,
    miniature: Annotated[bool, typer.Option("--miniature", help="A small network that fits a laptop.")] = False,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images per step, of all workers together.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N training images.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed, other weights.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that train together, on Ray if more than one.")] = None,
    gpus: Annotated[float | None, typer.Option(help="GPUs per worker, with several workers.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to use, such as auto.")] = None,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, such as optimisation.lr=1e-4. Repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Train a tagger or a detector on shards."""
    from sgpipe.training.display import print_training
    from sgpipe.training.recipe import load_train_recipe, shards_options
    from sgpipe.training.run import train as run
    from sgpipe.training.run import trained
    from sgpipe.utils.config_file import parse_set
    from sgpipe.utils.console import Progress

    options = {
        "data.train": shards_options(data, images) if data else None,
        "data.val": shards_options(val, images) if val else None,
        "model.init": init,
        "optimisation.epochs": epochs,
        "optimisation.batch": batch,
        "data.limit": limit,
        "seed": seed,
        "workers.count": workers,
        "workers.gpus": gpus,
        "workers.address": ray_address,
    }
    overrides = {key: value for key, value in options.items() if value is not None} | parse_set(assign or [])
    _heed_signals()
    summary = run(load_train_recipe(recipe, overrides, miniature=miniature), out, Progress(console.progress()))
    option = "--tagger" if summary.kind == "tagger" else "--init"
    if json_:
        print(json.dumps({**asdict(summary), "out": str(out), "network": str(trained(out))}, indent=2))
        return
    print_training(summary, f"the network is in {trained(out)}; use it with {option} {trained(out)}", _out)


@app.command()
def miniworld(
    out: Annotated[Path, typer.Option(help="Folder for images/ and annotations as of COCO, VG and HICO-DET.")],
    images: Annotated[int, typer.Option(help="How many images.")] = 200,
    seed: Annotated[int, typer.Option(help="Another seed, other images.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test-compositional.")] = "val",
) -> None:
    """Draw images of which everything is known."""
    from sgpipe.miniworld.dataset import draw_world

    draw_world(out, images, seed, split)
    _out.print(f"drew {images} images into {out}")


def _heed_signals() -> None:
    """Ctrl-C, and SIGTERM as schedulers send it: end in an orderly way; a second one: at once."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave)
    raise KeyboardInterrupt


def _leave(number: int, frame: FrameType | None) -> None:
    """As a kill would, which every step of a commit is made for; the Ray of this process ends with it."""
    os.write(2, f"stopped at once. {_GO_ON}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _last_word(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Instead of a traceback: one line, and how to get the traceback."""
    _err.print(f"internal error: {kind.__name__}: {error}", markup=False)
    _err.print("This is a bug in sgpipe. `sgpipe --verbose …` shows where; please report it.")


def _one_line(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as users want it: what, not where in the code."""
    _err.print(f"warning: {message}", soft_wrap=True)


def _fail(message: str, code: int) -> NoReturn:
    _err.print(message, markup=False, soft_wrap=True)
    sys.exit(code)


def main() -> None:
    """Entry point of the `sgpipe` command."""
    sys.excepthook = _last_word
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # bars of files that are there already
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what Ray prints of its processes; errors reach us anyway
    warnings.showwarning = _one_line
    typer.main.get_command(app)(prog_name="sgpipe")  # `app()` would put typer's own excepthook in its place
