"""What is true of drawn pictures, as shards that labels can be compared with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from sgpipe.importing import import_annotations
from sgpipe.miniworld.world import IMAGES, SCENE_GRAPHS
from sgpipe.progress import Progress
from sgpipe.shards.folder import COMPOSED, TRUE
from sgpipe.sources.visual_genome import VisualGenome


def import_truth(world: Path, split: str, out: Path) -> None:
    """Make shards of the scene graphs of a drawn split: of all facts, and of those that follow from no others.

    Raises UserError: as `import_annotations`.
    """
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    _import(world / SCENE_GRAPHS, world, split, out / TRUE)
    with TemporaryDirectory(dir=out) as folder:
        composed = Path(folder) / SCENE_GRAPHS
        composed.write_text(json.dumps(_composed(world / SCENE_GRAPHS)), encoding="utf-8")
        _import(composed, world, split, out / COMPOSED)


def _composed(graphs: Path) -> list[dict[str, object]]:
    found = json.loads(graphs.read_text(encoding="utf-8"))
    for graph in found:
        graph["relationships"] = [fact for fact in graph["relationships"] if not fact["implied"]]
    return found


def _import(graphs: Path, world: Path, split: str, out: Path) -> None:
    source = VisualGenome(graphs, world / IMAGES, split, preprocess=False).source()
    import_annotations(source, world / IMAGES, out, Progress(Console(quiet=True)))
