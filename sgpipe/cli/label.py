"""`sgpipe label`: the relations in a few images, printed and drawn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sgpipe.cli import declare
from sgpipe.cli import options as cli
from sgpipe.cli.recipe_options import settings_with_tagger
from sgpipe.errors import UserError
from sgpipe.utils import console
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from sgpipe.pipeline import Pipeline, SceneGraph

_DRAWN = re.compile(r".*\.relations(-\d+)?\.png", re.DOTALL)


def label(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of them.", exists=True)],
    out: Annotated[Path, declare.writes_folder("Folder for images with drawn relations.")] = Path(
        "labelled"
    ),
    boxes: Annotated[
        Path | None, declare.reads_file("COCO instances file with boxes; no detector runs.")
    ] = None,
    detector: cli.Detector = None,
    captioner: cli.Captioner = None,
    tagger: cli.Tagger = None,
    recipe: Annotated[
        str, declare.option("Models and settings; miniworld for its images.", panel=declare.MODELS)
    ] = "photos",
    threshold: Annotated[
        float, declare.option("Minimum confidence of the relations shown.", min=0, max=1)
    ] = 0.2,
    assign: cli.Settings = None,
    json_: Annotated[
        bool, declare.option("Print JSON: one line per image, with everything.", "--json")
    ] = False,
) -> None:
    """Find the relations in images, print them, and draw them. No annotations are needed.

    The default recipe uses models of the Hugging Face hub, downloaded on first
    use. With it, --tagger replaces CLIP by an R-Tagger.

    Examples:
      sgpipe label photos/
      sgpipe label a.jpg --boxes boxes.json
      sgpipe label miniworld/images --recipe miniworld
    """
    from sgpipe.files.hub import download_models, find_models, missing_models
    from sgpipe.recipe import hub_models, load_recipe, recipe_notes

    files = list(_files(images, out))
    settings = _settings(recipe, tagger, assign or [], has_boxes=boxes is not None)
    is_packaged = not any((detector, captioner, tagger, assign))
    fetch_command = f"sgpipe doctor --recipe {recipe} --fetch" if is_packaged else ""
    skipped = () if boxes is None else ("detect",)
    models = {"detect.detector": detector, "caption.captioner": captioner, "tag.tagger": tagger}
    changes = {key: value for key, value in models.items() if value is not None} | settings
    hub_names = hub_models(load_recipe(recipe, changes), skipped)
    missing = find_models(missing_models(hub_names), fetch_command)
    from sgpipe.pipeline import Pipeline  # it imports PyTorch: what is missing is said before

    pipeline = Pipeline(
        recipe,
        detector=detector,
        captioner=captioner,
        tagger=tagger,
        boxes=boxes,
        settings=settings,
    )
    for note in recipe_notes(pipeline.recipe, detects=boxes is None):
        cli.say(f"NOTE: {note}")
    if missing:
        download_models(missing)
    failed = _label(pipeline, files, out, threshold, json_)
    if failed == len(files):
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _settings(
    recipe: str, tagger: str | None, assign: list[str], *, has_boxes: bool
) -> dict[str, Any]:
    """Return the settings of --set, and those that --tagger and --boxes imply."""
    from sgpipe.utils.config_file import parse_set

    settings = settings_with_tagger(recipe, tagger, parse_set(assign))
    if has_boxes and recipe == "photos":
        settings = {"ground.detector": None, **settings}
    return settings


def _label(pipeline: Pipeline, files: list[Path], out: Path, threshold: float, json_: bool) -> int:
    """Label, draw and print the images. Return how many cannot be labelled."""
    failed = 0
    out.mkdir(parents=True, exist_ok=True)
    drawings = _drawings(files, out)
    for file, drawing, graph in zip(files, drawings, pipeline.label(files), strict=True):
        if graph.error is None:
            _draw(graph, threshold, drawing)
        else:
            failed += 1
        if json_:
            print(console.json_text(graph.as_json()))
        else:
            _show(file, graph, threshold, drawing)
    return failed


def _drawings(files: list[Path], out: Path) -> Iterator[Path]:
    """Yield the file that each image is drawn into, whose name is not that of any image."""
    drawn = Counter[str]()
    for file in files:
        drawn[file.name] += 1
        number = "" if drawn[file.name] == 1 else f"-{drawn[file.name]}"
        yield out / f"{file.name}.relations{number}.png"


def _draw(graph: SceneGraph, threshold: float, drawing: Path) -> None:
    from sgpipe.utils.atomic import atomic_write

    with atomic_write(drawing) as temporary:
        graph.draw(threshold).save(temporary, "PNG")


def _show(file: Path, graph: SceneGraph, threshold: float, drawing: Path) -> None:
    """Print the relations in an image, or why there are none."""
    triplets = graph.triplets(threshold)
    objects = count(len(graph.objects), "object")
    relations = count(len(triplets), "relation")
    result = graph.error or f"{objects}, {relations} → {drawing}"
    cli.show(console.single_line(f"{file}: {result}"))
    for subject, predicate, object_, confidence in triplets:
        score = "" if confidence is None else f"{confidence:.2f}  "
        cli.show(f"  {score}{console.single_line(f'{subject} · {predicate} · {object_}')}")


def _files(images: list[Path], out: Path) -> Iterator[Path]:
    """Yield the images, also those in folders, not drawings in `out`.

    Raises:
        UserError: a folder has none.
    """
    from sgpipe.files.roots import FolderRoot
    from sgpipe.sources.folder import list_folder, no_images

    drawings = out.resolve()
    for path in images:
        if not path.is_dir():
            yield path
            continue
        folder = list_folder(FolderRoot(path))
        files = []
        for name in folder.images:
            file = path / name
            is_drawing = _DRAWN.fullmatch(file.name) and file.parent.resolve() == drawings
            if not is_drawing:
                files.append(file)
        if not files:
            raise UserError(no_images(path, folder.notes))
        for note in folder.notes:
            cli.say(f"NOTE: {path}: {note}")
        yield from files
