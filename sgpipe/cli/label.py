"""`sgpipe label`: images of one's own, drawn with their relations."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from sgpipe.errors import UserError, making_folder
from sgpipe.utils import console

if TYPE_CHECKING:
    from sgpipe.pipeline import SceneGraph


EXIT_ALL_FAILED = 3
_DRAWN = re.compile(r".*\.relations(-\d+)?\.png", re.DOTALL)
_NOTE = "NOTE: the models of the miniworld know nothing but drawn images; for photographs give others: --tagger …"


def label(
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[Path, typer.Option(help="Folder for the drawn images.")] = Path("labelled"),
    boxes: Annotated[Path | None, typer.Option(help="COCO instances file with the boxes; no detector runs.")] = None,
    detector: Annotated[str | None, typer.Option(help="Object detector of transformers: folder or hub id.")] = None,
    captioner: Annotated[str | None, typer.Option(help="BLIP captioning model: folder or hub id.")] = None,
    tagger: Annotated[str | None, typer.Option(help="R-Tagger made by `sgpipe convert` or training.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe with models and settings: folder if a model is given, else miniworld.")
    ] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Least confidence of what is shown.")] = 0.2,
    assign: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting, such as detect.threshold=0.5. Repeatable.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, an image a line, with all that is known.")] = False,
) -> None:
    """Find the relations in images, draw them, and print them. No annotations are needed."""
    import json

    from sgpipe.pipeline import Pipeline
    from sgpipe.utils.config_file import parse_set

    screen = console.output()
    files = list(_files(images, out))
    with making_folder(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # before minutes are spent
    chosen = recipe or ("folder" if detector or captioner or tagger else "miniworld")
    models = {"detector": detector, "captioner": captioner, "tagger": tagger}
    pipeline = Pipeline(chosen, **models, boxes=boxes, settings=parse_set(assign or []))
    if pipeline.drawn:
        console.progress().print(_NOTE, style="dim", soft_wrap=True)
    failed = 0
    for file, name, graph in zip(files, _names(files), pipeline.label(files), strict=True):
        failed += graph.error is not None
        if graph.error is None:
            _save(graph, out / name, threshold)
        if json_:
            print(json.dumps(graph.as_json(), ensure_ascii=False))
        else:
            _tell(graph, file, out / name, threshold, screen)
    if failed == len(files):
        raise typer.Exit(EXIT_ALL_FAILED)


def _files(images: list[Path], out: Path) -> Iterator[Path]:
    """The images, and those in the folders, without what was drawn into `out`, which may be in one of them.

    Raises UserError: something is not there, or holds none.
    """
    from sgpipe.sources.folder import iter_images

    place = out.resolve()
    for path in images:
        if not path.exists():
            raise UserError(f"there is no image {path}")
        found = [path]
        if path.is_dir():
            inside = (path / name for name in iter_images(path))
            found = [file for file in inside if not (_DRAWN.fullmatch(file.name) and file.parent.resolve() == place)]
        if not found:
            raise UserError(f"there are no images in {path}")
        yield from found


def _names(files: list[Path]) -> Iterator[str]:
    """What the drawn images are called; never as the images themselves, and never twice."""
    taken: set[str] = set()
    for file in files:
        name, number = f"{file.name}.relations.png", 1
        while name in taken:
            number += 1
            name = f"{file.name}.relations-{number}.png"
        taken.add(name)
        yield name


def _save(graph: SceneGraph, path: Path, threshold: float) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    graph.draw(threshold).save(temporary, "PNG")
    temporary.replace(path)


def _tell(graph: SceneGraph, file: Path, drawn: Path, threshold: float, console: Console) -> None:
    from sgpipe.sources.annotated import line

    if graph.error is not None:
        console.print(line(f"{file}: {graph.error}"), soft_wrap=True)
        return
    triplets = graph.triplets(threshold)
    found = f"{len(graph.objects)} objects, {len(triplets)} relations"
    console.print(line(f"{file}: {found} → {drawn}"), soft_wrap=True)
    for subject, predicate, object_, confidence in triplets:
        sure = "" if confidence is None else f"{confidence:.2f}  "
        console.print(f"  {sure}{subject} · {predicate} · {object_}", soft_wrap=True)
