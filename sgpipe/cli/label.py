"""`sgpipe label`: find the relations in a few images and draw them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sgpipe.cli.options import Captioner, Detector, Settings, Tagger
from sgpipe.errors import UserError, making_folder
from sgpipe.utils import console
from sgpipe.utils.atomic import atomic_write
from sgpipe.utils.console import count

if TYPE_CHECKING:
    from rich.console import Console

    from sgpipe.pipeline import SceneGraph


_DRAWN = re.compile(r".*\.relations(-\d+)?\.png", re.DOTALL)
_NOTE = "NOTE: the packaged miniworld models know only synthetic images; for photographs give your own: --tagger …"


def label(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the drawings.")] = Path("labelled"),
    boxes: Annotated[Path | None, typer.Option(help="COCO instances file with boxes; no detector runs.")] = None,
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
    import json

    from sgpipe.pipeline import Pipeline
    from sgpipe.utils.config_file import parse_set

    screen = console.output()
    files = list(_files(images, out))
    with making_folder(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fail before minutes of work
    chosen = recipe or ("folder" if detector or captioner or tagger else "miniworld")
    models = {"detector": detector, "captioner": captioner, "tagger": tagger}
    pipeline = Pipeline(chosen, **models, boxes=boxes, settings=parse_set(assign or []))
    if pipeline.uses_miniworld_models:
        console.progress().print(_NOTE, style="dim", soft_wrap=True)
    failed = 0
    for file, name, graph in zip(files, _names(files), pipeline.label(files), strict=True):
        failed += graph.error is not None
        if graph.error is None:
            _save(graph, out / name, threshold)
        if json_:
            print(json.dumps(graph.as_json(), ensure_ascii=False))
        else:
            _print(graph, file, out / name, threshold, screen)
    if failed == len(files):
        raise typer.Exit(console.EXIT_ALL_FAILED)


def _files(images: list[Path], out: Path) -> Iterator[Path]:
    """The images, and those in the folders, without earlier drawings in `out`, which may be one of the folders.

    Raises UserError: a path does not exist, or a folder contains no images.
    """
    from sgpipe.sources.folder import iter_images

    drawings = out.resolve()
    for path in images:
        if not path.exists():
            raise UserError(f"image not found: {path}")
        files = [path]
        if path.is_dir():
            inside = (path / name for name in iter_images(path))
            files = [file for file in inside if not (_DRAWN.fullmatch(file.name) and file.parent.resolve() == drawings)]
        if not files:
            raise UserError(f"no images in {path}")
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
    from sgpipe.sources.annotated import to_single_line

    if graph.error is not None:
        screen.print(to_single_line(f"{file}: {graph.error}"), soft_wrap=True)
        return
    triplets = graph.triplets(threshold)
    counts = f"{count(len(graph.objects), 'object')}, {count(len(triplets), 'relation')}"
    screen.print(to_single_line(f"{file}: {counts} → {drawing}"), soft_wrap=True)
    for subject, predicate, object_, confidence in triplets:
        score = "" if confidence is None else f"{confidence:.2f}  "
        screen.print(f"  {score}{subject} · {predicate} · {object_}", soft_wrap=True)
