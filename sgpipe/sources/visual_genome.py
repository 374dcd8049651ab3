"""Visual Genome: scene_graphs.json or relationships.json, and files of their form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.images import is_there
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts
from sgpipe.sources.fields import as_id, side
from sgpipe.sources.forms import RELATIONSHIPS, SCENE_GRAPHS, VG_IMAGES, require
from sgpipe.sources.json_stream import JsonStream
from sgpipe.sources.redundancy import Aliases, load_aliases, remove_redundant
from sgpipe.sources.scene_graphs import drop_nameless, graph_record, iter_graphs

_FOLDERS = ("VG_100K", "VG_100K_2")  # what the pictures of the two downloads unpack to


@dataclass(frozen=True)
class VisualGenome:
    """Where Visual Genome lies, and whether its redundant relations are removed.

    Attributes:
        image_data: image_data.json, which gives the images' sizes; without it, their files do.
        object_aliases, predicate_aliases: tables of words that mean the same, one group a line.
    """

    annotations: Path
    images: Path
    split: str
    image_data: Path | None = None
    object_aliases: Path | None = None
    predicate_aliases: Path | None = None
    preprocess: bool = True

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or another than it should be."""
        aliases = (self.object_aliases, self.predicate_aliases)
        if any(aliases) and not self.preprocess:
            raise UserError("aliases only matter to the preprocessing: leave out --no-preprocess or the alias files")
        require(self.annotations, SCENE_GRAPHS, RELATIONSHIPS)
        if self.image_data:
            require(self.image_data, VG_IMAGES)
        files = {
            "annotations": self.annotations,
            "image_data": self.image_data,
            "object_aliases": self.object_aliases,
            "predicate_aliases": self.predicate_aliases,
        }
        return AnnotationSource(
            dataset="visual_genome",
            split=self.split,
            read=self.records,
            files={role: path for role, path in files.items() if path},
            options={"preprocess": self.preprocess},
        )

    def records(self, problems: ProblemCounts) -> Iterator[Record]:
        """The images in file order."""
        aliases = Aliases(load_aliases(self.object_aliases), load_aliases(self.predicate_aliases))
        sizes = _sizes(self.image_data)
        for item in iter_graphs(self.annotations):
            record = graph_record(item, "visual_genome", self.split, problems)
            if record is None:
                continue
            if self.preprocess:
                remove_redundant(record, aliases, problems)
            drop_nameless(record, problems)
            record.width, record.height = sizes.get(record.image_id, (record.width, record.height))
            record.file_name = self._locate(record.file_name)
            yield record

    def _locate(self, name: str) -> str:
        names = (name, *(f"{folder}/{name}" for folder in _FOLDERS))
        return next((name for name in names if is_there(self.images, name)), name)


def _sizes(image_data: Path | None) -> dict[str, tuple[int, int]]:
    """Width and height by image id."""
    if image_data is None:
        return {}
    sizes = {}
    for _, item in JsonStream(image_data):
        if isinstance(item, dict) and (image_id := as_id(item.get("image_id"))):
            sizes[image_id] = side(item.get("width")), side(item.get("height"))
    return sizes
