"""The miniworld as a source: images with boxes, captions and exact ground truth, generated on the
spot.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from sgpipe.miniworld.dataset import CAPTIONS, IMAGES, INSTANCES, SCENE_GRAPHS
from sgpipe.miniworld.dataset import render_dataset as render_dataset
from sgpipe.recipe import MiniworldConfig, SourceConfig, SplitConfig
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.visual_genome import visual_genome_source
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import Progress, count


class MiniworldFiles:
    """Generated images of a run, and shards with their ground truth, in one folder.

    `world` is what `sgpipe miniworld` writes. `all_relations` and `composed_relations` are shards
    with every relation that holds in an image, and with those that it was composed of, from which
    the others follow.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.world = root / "world"
        self.all_relations = root / "true"
        self.composed_relations = root / "composed"
        self._settings = root / "drawn.json"  # which images these are, written last

    @property
    def ground_truth(self) -> GroundTruth:
        return GroundTruth(self.all_relations, self.composed_relations)

    def prepare(
        self, source: SourceConfig, say: Callable[[str], None]
    ) -> tuple[SourceConfig, GroundTruth]:
        """Return the source with these images and their ground truth, which are generated unless
        they are there.
        """
        config = source.miniworld
        world = self.world
        self.make(config, say)
        split = SplitConfig(
            annotations=world / INSTANCES, images=world / IMAGES, captions=world / CAPTIONS
        )
        splits = {split_name(config.split): split}
        return source.model_copy(update={"root": None, "splits": splits}), self.ground_truth

    def make(self, config: MiniworldConfig, say: Callable[[str], None] = lambda text: None) -> None:
        """Generate images and ground truth, unless they are there; what else the folder held is
        removed.
        """
        settings = json.dumps(config.model_dump())
        if self._settings.is_file() and self._settings.read_text(encoding="utf-8") == settings:
            return
        say(f"generating {count(config.images, 'image')}")
        shutil.rmtree(self.root, ignore_errors=True)
        render_dataset(self.world, config.images, config.seed, config.split)
        graphs = self.world / SCENE_GRAPHS
        import_graphs(graphs, config.split, self.all_relations)
        scenes: list[dict[str, Any]] = json.loads(graphs.read_text(encoding="utf-8"))
        for scene in scenes:
            scene["relationships"] = [
                relation for relation in scene["relationships"] if not relation["implied"]
            ]
        composed = self.root / "composed.json"
        write_text(composed, json.dumps(scenes))
        import_graphs(composed, config.split, self.composed_relations, self.world / IMAGES)
        composed.unlink()
        write_text(self._settings, settings)


def import_graphs(graphs: Path, split: str, out: Path, images: Path | None = None) -> None:
    """Import scene graphs of the miniworld as shards; `images` defaults to the folder next to
    them.
    """
    images = images or graphs.parent / IMAGES
    source = visual_genome_source(graphs, images, split_name(split), preprocess=False)
    import_annotations(source, images, out, Progress(Console(quiet=True)))


def split_name(split: str) -> str:
    """Return the name of a miniworld split in shards."""
    return split.replace("-", "_")
