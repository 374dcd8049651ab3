"""Drawn images with what is true of them, as shards that labels can be compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from rich.console import Console

from sgpipe.miniworld.dataset import IMAGES, SCENE_GRAPHS, draw_world
from sgpipe.recipe import DrawnConfig
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.visual_genome import VisualGenome
from sgpipe.storage.run_folder import Drawing
from sgpipe.utils.console import Progress


def draw(config: DrawnConfig, drawing: Drawing) -> None:
    """Draw the images and write down what is true of them; whatever was there before is removed.

    Raises OSError: the disk is full, or the folder cannot be written.
    """
    shutil.rmtree(drawing.place, ignore_errors=True)
    draw_world(drawing.world, config.images, config.seed, config.split)
    graphs = drawing.world / SCENE_GRAPHS
    import_graphs(graphs, config.split, drawing.true)
    composed = drawing.place / "composed.json"
    composed.write_text(json.dumps(_composed(graphs)), encoding="utf-8")
    import_graphs(composed, config.split, drawing.composed, drawing.world / IMAGES)
    composed.unlink()
    drawing.finish(config.model_dump())


def import_graphs(graphs: Path, split: str, out: Path, images: Path | None = None) -> None:
    """Make shards of scene graphs of the drawn world; `images`: by default beside them."""
    images = images or graphs.parent / IMAGES
    source = VisualGenome(graphs, images, split_name(split), preprocess=False).source()
    import_annotations(source, images, out, Progress(Console(quiet=True)))


def split_name(split: str) -> str:
    """What a split of the drawn world is called in shards."""
    return split.replace("-", "_")


def _composed(graphs: Path) -> list[dict[str, object]]:
    found = json.loads(graphs.read_text(encoding="utf-8"))
    for graph in found:
        graph["relationships"] = [fact for fact in graph["relationships"] if not fact["implied"]]
    return found
