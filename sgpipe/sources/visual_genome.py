"""Visual Genome (scene_graphs.json or relationships.json), with the preprocessing of RLIPv2.

Visual Genome's annotators saw one region at a time, so one fact about an image may be annotated several times, with
different boxes and words. As in the published preprocessing "v1", repeated and redundant relations are removed, and an
image keeps at most a hundred relations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.text_files import read_text
from sgpipe.images import image_exists
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, parse_id, parse_side
from sgpipe.sources.formats import RELATIONSHIPS, SCENE_GRAPHS, VG_IMAGES, require_format
from sgpipe.sources.scene_graphs import drop_nameless, graph_record, iter_graphs

_FOLDERS = ("VG_100K", "VG_100K_2")  # folders of the two downloads of images


@dataclass(frozen=True)
class VisualGenome:
    """A file of Visual Genome's annotations, and whether its redundant relations are removed.

    Attributes:
        image_data: image_data.json with the image sizes; None: the sizes come from the images themselves.
        object_aliases, predicate_aliases: files of words with the same meaning, one group per line.
    """

    annotations: Path
    images: ImagePlace
    split: str
    image_data: Path | None = None
    object_aliases: Path | None = None
    predicate_aliases: Path | None = None
    preprocess: bool = True

    def source(self) -> AnnotationSource:
        """Raises UserError: a file is missing or of another format, or aliases are given without preprocessing."""
        aliases = (self.object_aliases, self.predicate_aliases)
        if any(aliases) and not self.preprocess:
            raise UserError("aliases are used only by the preprocessing: omit --no-preprocess or the alias files")
        require_format(self.annotations, SCENE_GRAPHS, RELATIONSHIPS)
        if self.image_data:
            require_format(self.image_data, VG_IMAGES)
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
        aliases = AliasTables(load_aliases(self.object_aliases), load_aliases(self.predicate_aliases))
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
        return next((name for name in names if image_exists(self.images, name)), name)


def _sizes(image_data: Path | None) -> dict[str, tuple[int, int]]:
    """Width and height by image id."""
    if image_data is None:
        return {}
    sizes = {}
    for _, item in JsonStream(image_data):
        if isinstance(item, dict) and (image_id := parse_id(item.get("image_id"))):
            sizes[image_id] = parse_side(item.get("width")), parse_side(item.get("height"))
    return sizes


MAX_RELATIONS = 100  # the number of query pairs of RLIPv2
_SAME_BOX_IOU = 0.7


@dataclass(frozen=True)
class AliasTables:
    """Words with the same meaning, mapped to one of them."""

    objects: Mapping[str, str] = field(default_factory=dict)
    predicates: Mapping[str, str] = field(default_factory=dict)


def load_aliases(path: Path | None) -> dict[str, str]:
    """Read a table of aliases: lines of words with the same meaning, separated by commas. Without a file it is empty.

    Raises UserError: the file cannot be read, or no line has a comma.
    """
    if path is None:
        return {}
    groups = [line.strip().split(",") for line in read_text(path, "alias file").splitlines()]
    if not any(len(group) > 1 for group in groups):
        raise UserError(f"alias file {path}: expected lines such as 'tree,trees', found no comma")
    return {word: group[0] for group in groups for word in group}


def remove_redundant(record: Record, aliases: AliasTables, problems: ProblemCounts) -> None:
    """Convert names to lower case, remove repeated and redundant relations, and keep the first `MAX_RELATIONS`.

    A relation is repeated if an earlier one equals it. It is redundant if an earlier one has the same predicate,
    subject class and object class, taking aliases as equal, and an IoU of at least 0.7 with it for both boxes.
    """
    for box in record.objects:
        box.category = box.category.lower()
    for relation in record.relations:
        relation.predicate = relation.predicate.lower()
    relations = _distinct(record.relations)
    problems["repeated_relations"] += len(record.relations) - len(relations)
    record.relations = _without_redundant(record, relations, aliases)
    problems["redundant_relations"] += len(relations) - len(record.relations)
    problems["relations_beyond_100"] += max(0, len(record.relations) - MAX_RELATIONS)
    record.relations = record.relations[:MAX_RELATIONS]


def _distinct(relations: list[Relation]) -> list[Relation]:
    first: dict[tuple[int, int, str], Relation] = {}
    for item in relations:
        first.setdefault((item.subject, item.object, item.predicate), item)
    return list(first.values())


def _without_redundant(record: Record, relations: list[Relation], aliases: AliasTables) -> list[Relation]:
    kept: list[Relation] = []
    by_meaning: dict[tuple[str, str, str], list[Relation]] = {}
    for item in relations:
        subject, object_ = record.objects[item.subject], record.objects[item.object]
        meaning = (
            aliases.objects.get(subject.category, subject.category),
            aliases.predicates.get(item.predicate, item.predicate),
            aliases.objects.get(object_.category, object_.category),
        )
        others = by_meaning.setdefault(meaning, [])
        if not any(
            pixel_iou(subject, record.objects[other.subject]) >= _SAME_BOX_IOU
            and pixel_iou(object_, record.objects[other.object]) >= _SAME_BOX_IOU
            for other in others
        ):
            others.append(item)
            kept.append(item)
    return kept


def pixel_iou(a: Box, b: Box) -> float:
    """The IoU of two boxes in whole pixels, with their last row and column included."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = a.bbox, b.bbox
    width, height = min(ax + aw, bx + bw) - max(ax, bx), min(ay + ah, by + bh) - max(ay, by)
    if width <= 0 or height <= 0:
        return 0.0
    intersection = (width + 1) * (height + 1)
    return intersection / ((aw + 1) * (ah + 1) + (bw + 1) * (bh + 1) - intersection)
