"""Commands that label images: `sgpipe generate` many, `sgpipe label` a few. `miniworld` and `parse` do parts of it."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, redirect_stdout
from dataclasses import asdict
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgpipe.cli.options import (
    CalibrationFile,
    Captioner,
    Detector,
    ExpectedPrecision,
    Json,
    Limit,
    RayAddress,
    Seed,
    Settings,
    Tagger,
    reads_file,
    reads_model,
    reads_path,
    reads_run,
    with_option_groups,
    writes_folder,
)
from sgpipe.cli.source_options import SourceOptions
from sgpipe.errors import UserError, existing_path
from sgpipe.utils import console
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from rich.console import Console

    from sgpipe.pipeline import SceneGraph
    from sgpipe.recipe import Recipe
    from sgpipe.storage.manifest import Summary


@with_option_groups
def generate(
    *,
    recipe: Annotated[
        str | None,
        typer.Argument(help="Packaged recipe (miniworld: default, coco, folder, …) or YAML file."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the shards; a run in it is resumed. Default: NAME-relations.", callback=writes_folder
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Object store for the shards, such as s3://bucket/labels; the rest is in --out.")
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Run whose recipe, captions and so on are taken; work begins at the first stage with other settings.",
            callback=reads_run,
        ),
    ] = None,
    data: SourceOptions,
    detector: Detector = None,
    captioner: Captioner = None,
    tagger: Tagger = None,
    calibration: CalibrationFile = None,
    precision: ExpectedPrecision = None,
    limit: Limit = None,
    seed: Seed = None,
    retry_failed: Annotated[bool, typer.Option(help="Label the images of error rows again.")] = False,
    ray_address: RayAddress = None,
    assign: Settings = None,
    json_: Json = False,
) -> None:
    """Label the images of a dataset or a folder with relations.

    Without arguments, generates 200 synthetic images and labels them with the tiny models that ship with sgpipe;
    --set source.drawn.seed=1 gives other images.
    """
    options = {
        **data.overrides(),
        "detect.detector": detector,
        "caption.captioner": captioner,
        "tag.tagger": tagger,
        "tag.calibration": calibration,
        "tag.precision": precision,
        "limit": limit,
        "seed": seed,
        "engine.address": ray_address,
        "engine.store": store,
    }
    if parent is not None and out is None:
        raise UserError("--from needs --out, the folder of the new run")
    given = {key: value for key, value in options.items() if value is not None}
    loaded = _load(_loader(recipe, parent, data), given, data, assign or [], out)
    _run(loaded, out or _default_folder(loaded), retry_failed, json_, parent)


def _loader(recipe: str | None, parent: str | None, data: SourceOptions) -> Callable[[dict[str, Any]], Recipe]:
    """What loads the recipe, or that of the parent, with overrides."""
    from sgpipe.recipe import load_recipe

    if recipe is not None or parent is None:
        return partial(load_recipe, recipe or "miniworld")
    from sgpipe.generation.parent import parent_recipe

    root = {"source.root": None} if data.images else {}  # the parent's would be that of --images
    return lambda overrides: parent_recipe(parent, {**root, **overrides})


def _load(
    load: Callable[[dict[str, Any]], Recipe],
    overrides: Mapping[str, Any],
    data: SourceOptions,
    assigned: list[str],
    out: Path | None,
) -> Recipe:
    """The recipe with the options of the command line. Raises UserError: it is not valid, or does not fit them."""
    from sgpipe.utils.config_file import parse_set

    changes = parse_set(assigned)
    loaded = load({**overrides, **changes})
    data.check(loaded.source)
    if data.images is None:
        return loaded
    name = data.split_name(loaded.source, out or _default_folder(loaded))
    return load({**overrides, **data.of_split(name), **changes})


def _default_folder(recipe: Recipe) -> Path:
    return Path(f"{recipe.name}-relations")


def _run(recipe: Recipe, out: Path, retry_failed: bool, json_: bool, parent: str | None) -> None:
    """Label, and print what the run contains."""
    from sgpipe.generation.run import generate as run
    from sgpipe.records import TRAINING_CONFIDENCE

    with redirect_stdout(sys.stderr):  # Ray prints what happens to its machines; standard output is for results
        summary = run(recipe, out, console.Progress(console.progress()), retry_failed=retry_failed, parent=parent)
    least = max(TRAINING_CONFIDENCE, recipe.tag.threshold) if recipe.tag.calibration is None else 0.0
    _report(summary, least, json_, recipe.engine.store)
    if summary.counts["images"] and summary.counts["images"] == summary.counts["errors"]:
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _report(summary: Summary, threshold: float, json_: bool, store: str | None) -> None:
    """Print what the run contains and, if its images have ground truth and its shards are local, how good it is."""
    from sgpipe.evaluation.label_quality.report import print_run_quality, run_quality
    from sgpipe.generation.summary import print_summary

    quality = run_quality(summary.root, threshold) if store is None else {}
    if json_:
        measured = {name: asdict(each.at_threshold) for name, each in quality.items()}
        print(json.dumps(summary.as_json() | ({"quality": measured} if measured else {}), indent=2))
        return
    screen = console.output()
    print_summary(summary, screen)
    if quality:
        print_run_quality(quality, screen)


_MINIWORLD_IMAGES = 200


def miniworld(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the images and for annotations in COCO, Visual Genome and HICO-DET format.",
            callback=writes_folder,
        ),
    ],
    number: Annotated[int | None, typer.Option("--count", help="Number of images. Default: 200.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    split: Annotated[str, typer.Option(help="train, val or test-compositional.")] = "val",
    images: Annotated[int | None, typer.Option("--images", hidden=True, help="The old name of --count.")] = None,
) -> None:
    """Generate a synthetic dataset with exact ground truth.

    The same command finishes an interrupted dataset. A folder that contains another one is refused.
    """
    from sgpipe.sources.miniworld import render_dataset

    if number is not None and images is not None:
        raise UserError("--images is the old name of --count; give one of them")
    wanted = number if number is not None else images if images is not None else _MINIWORLD_IMAGES
    with ExitStack() as stack:  # no progress is shown of a set that is complete or refused
        advance = cache(lambda: stack.enter_context(console.Progress().images(wanted, "generating")))
        is_new = render_dataset(out, wanted, seed, split, progress=lambda: advance()(1, {}))
    if is_new:
        message = f"generated {console.count(wanted, 'image')} in {out}"
    else:
        message = f"nothing left to do: {out} already contains {'this' if wanted == 1 else 'these'} "
        message += console.count(wanted, "image")
    console.output().print(message, soft_wrap=True)


class ParserKind(StrEnum):
    """The values of --parser, as in `ParseConfig.parser`."""

    rules = "rules"
    learned = "learned"
    seq2seq = "seq2seq"
    llm = "llm"


def parse(
    parser: Annotated[ParserKind, typer.Option(help="Parser.")] = ParserKind.rules,
    model: Annotated[
        str | None,
        typer.Option(
            help="Its model: of rules and learned, a spaCy model (default: the best one installed); of seq2seq, a "
            "folder or hub id; of llm, its name at the endpoint.",
            callback=reads_model,
        ),
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="llm: URL of a server with the OpenAI chat API. Its key is in OPENAI_API_KEY.")
    ] = None,
) -> None:
    """Turn captions into triplets.

    Reads one caption per line from standard input and prints one line of JSON for each.
    """
    from sgpipe.recipe import ParseConfig
    from sgpipe.stages.parse.parser import CaptionParser
    from sgpipe.stages.parse.stage import parse_lines

    if sys.stdin is None:
        raise UserError("standard input is closed; `parse` reads one caption per line from it")
    captions = CaptionParser(ParseConfig(parser=parser.value, model=model, endpoint=endpoint))
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    for result in parse_lines(sys.stdin, captions):
        print(console.json_text(result))


_DRAWN = re.compile(r".*\.relations(-\d+)?\.png", re.DOTALL)
_NOTE = "the packaged miniworld models know only synthetic images; for photographs give your own: --captioner, --tagger"


def label(
    images: Annotated[
        list[Path], typer.Argument(help="Images, or folders or archives (.zip, .tar) of images.", callback=reads_path)
    ],
    out: Annotated[Path, typer.Option(help="Folder for images with drawn relations.", callback=writes_folder)] = Path(
        "labelled"
    ),
    boxes: Annotated[
        Path | None, typer.Option(help="COCO instances file with boxes; no detector runs.", callback=reads_file)
    ] = None,
    detector: Detector = None,
    captioner: Captioner = None,
    tagger: Tagger = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe with models and settings. Default: folder if a model is given, else miniworld."),
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Minimum confidence of the relations shown.")] = 0.2,
    assign: Settings = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print JSON, one line per image, with everything that was found.")
    ] = False,
) -> None:
    """Find the relations in images, print them, and draw them. No annotations are needed."""
    from sgpipe.pipeline import Pipeline
    from sgpipe.stages.tag.methods import tag_notes
    from sgpipe.utils.config_file import parse_set

    screen = console.output()
    files = list(_files(images, out))
    out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=out).close()  # fail before minutes of work
    chosen = recipe or ("folder" if detector or captioner or tagger else "miniworld")
    models = {"detector": detector, "captioner": captioner, "tagger": tagger}
    pipeline = Pipeline(chosen, **models, boxes=boxes, settings=parse_set(assign or []))
    notes = [_NOTE] if pipeline.uses_miniworld_models else []
    for note in notes + tag_notes(pipeline.recipe.tag):
        console.progress().print(f"NOTE: {note}", style="dim", soft_wrap=True)
    failed = 0
    for file, name, graph in zip(files, _names(files), pipeline.label(files), strict=True):
        failed += graph.error is not None
        if graph.error is None:
            _save(graph, out / name, threshold)
        if json_:
            print(console.json_text(graph.as_json()))
        else:
            _print(graph, file, out / name, threshold, screen)
    if failed == len(files):
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _files(images: list[Path], out: Path) -> Iterator[Path]:
    """The images, and those in the folders, without earlier drawings in `out`, which may be one of the folders.

    Raises UserError: a path does not exist, or a folder contains no images.
    """
    from sgpipe.files.archives import is_archive, refuse_compressed
    from sgpipe.files.roots import FolderRoot
    from sgpipe.sources.folder import list_folder, no_images

    drawings = out.resolve()
    for path in images:
        existing_path(path)
        files = [path]
        refuse_compressed(str(path))
        packed = path.is_file() and is_archive(path.name)
        if packed or path.is_dir():
            found = list_folder(path if packed else FolderRoot(path))
            inside = (path / name for name in found.images)
            files = [file for file in inside if not (_DRAWN.fullmatch(file.name) and file.parent.resolve() == drawings)]
            if not files:
                raise UserError(no_images(path, found.notes))
            for note in found.notes:
                console.progress().print(f"NOTE: {path}: {note}", style="dim", soft_wrap=True)
        yield from files


def _names(files: list[Path]) -> Iterator[str]:
    """File names for the drawings: no two the same, and none that of an image."""
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.name}.relations.png", 1
        while name in taken:
            number += 1
            name = f"{file.name}.relations-{number}.png"
        taken.add(name)
        yield name


def _save(graph: SceneGraph, path: Path, threshold: float) -> None:
    with atomic_write(path) as temporary:
        graph.draw(threshold).save(temporary, "PNG")


def _print(graph: SceneGraph, file: Path, drawing: Path, threshold: float, screen: Console) -> None:
    if graph.error is not None:
        screen.print(console.single_line(f"{file}: {graph.error}"), soft_wrap=True)
        return
    triplets = graph.triplets(threshold)
    counts = f"{count(len(graph.objects), 'object')}, {count(len(triplets), 'relation')}"
    screen.print(console.single_line(f"{file}: {counts} → {drawing}"), soft_wrap=True)
    for subject, predicate, object_, confidence in triplets:
        score = "" if confidence is None else f"{confidence:.2f}  "
        screen.print(f"  {score}{console.single_line(f'{subject} · {predicate} · {object_}')}", soft_wrap=True)
