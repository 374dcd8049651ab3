"""An index of ground truth: find an image, match its objects, look up the relations of two objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.matching import equal_rows
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality.arrays import Graphs, ImageName, iter_graphs, joined
from sgpipe.evaluation.label_quality.measures import NO_MATCH, best_pairs
from sgpipe.evaluation.label_quality.synonyms import ClassTable, Vocabulary
from sgpipe.files.json_stream import JsonStream
from sgpipe.sources.annotated import parse_id
from sgpipe.sources.formats import VG_IMAGES, require_format
from sgpipe.utils.boxes import iou as box_iou

NO_IMAGE = -1
_MOST_PREDICATES = 1 << 24  # a predicate is the low bits of a key
_AMBIGUOUS = -2


class GroundTruthIndex:
    """Annotated images, all in memory as arrays."""

    def __init__(
        self, root: Path, classes: Vocabulary, predicates: Vocabulary, coco_ids: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            coco_ids: COCO's image ids by those of the ground truth; if given, images are found only by these.

        Raises:
            UserError: the folder is not a run, or contains no images or no relations.
        """
        parts = list(iter_graphs(root, classes, predicates, "relations"))
        if not any(len(part.subject) for part in parts):
            raise UserError(f"{root} contains no relations to compare with")
        self.graphs = joined(parts)
        self._find = ImageFinder(self.graphs.names, coco_ids)
        self.repeated = self._find.repeated
        places = self._pair_places(self.graphs.subject, self.graphs.object)
        self._pairs, pair = np.unique(places, return_inverse=True)
        keys = pair.reshape(-1) * _MOST_PREDICATES + self.graphs.predicate
        self._keys, self.statements = np.unique(keys, return_index=True)  # one row per distinct relation

    def find(self, names: Sequence[ImageName]) -> Array:
        """`[names]`, the image of each name, or `NO_IMAGE`."""
        return np.array([self._find(name) for name in names], dtype=np.int64)

    def match(self, graphs: Graphs, images: Array, classes: ClassTable, iou: float) -> Array:
        """Match predicted objects with those of the ground truth by class and box.

        Args:
            images: `[images]`, the ground truth image of each image of `graphs`, or `NO_IMAGE`.
            iou: minimum overlap of the two boxes.

        Returns:
            `[objects]`, an object of the ground truth or `NO_MATCH`.
        """
        entries, kinds = self._entries(images[images >= 0], classes)
        usable = np.flatnonzero((images[graphs.image] >= 0) & ~graphs.crowd)
        count = 1 + max(kinds.max(initial=0), graphs.category.max(initial=0))
        left, right = equal_rows(
            images[graphs.image[usable]] * count + graphs.category[usable], self.graphs.image[entries] * count + kinds
        )
        left, right = usable[left], entries[right]
        overlap = box_iou(graphs.boxes[left], self.graphs.boxes[right])
        same = overlap >= iou
        return best_pairs(left[same], right[same], overlap[same], len(graphs.image))

    def _entries(self, images: Array, classes: ClassTable) -> tuple[Array, Array]:
        """Objects of these images and a class for each; an object that may be of several classes is repeated."""
        starts, ends = self.graphs.starts[images], self.graphs.starts[images + 1]
        objects = _ranges(starts, ends)
        objects = objects[~self.graphs.crowd[objects]]
        distinct, kind = np.unique(self.graphs.category[objects], return_inverse=True)
        meanings = [classes.classes(number) for number in distinct.tolist()]
        counts = np.array([len(own) for own in meanings], dtype=np.int64)
        flat = np.array([number for own in meanings for number in own], dtype=np.int64)
        firsts = np.cumsum(counts) - counts
        kind = kind.reshape(-1)
        return np.repeat(objects, counts[kind]), flat[_ranges(firsts[kind], (firsts + counts)[kind])]

    def judge(self, subjects: Array, objects: Array, predicates: Array) -> tuple[Array, Array]:
        """Look up relations between objects of the ground truth.

        Args:
            subjects, objects: `[relations]`, objects of the ground truth or `NO_MATCH`; predicates: `[relations]`.

        Returns:
            `[relations]`: whether the ground truth has this relation, and whether it has any relation of the pair.
        """
        matched = (subjects != NO_MATCH) & (objects != NO_MATCH)
        pair, related = _look_up(self._pairs, self._pair_places(subjects, objects))
        related &= matched
        _, true = _look_up(self._keys, pair * _MOST_PREDICATES + predicates)
        return true & related, related

    def _pair_places(self, subjects: Array, objects: Array) -> Array:
        return subjects * len(self.graphs.image) + objects


def _look_up(table: Array, keys: Array) -> tuple[Array, Array]:
    """`[keys]`: the position of each in the sorted table, and whether the table has it."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys


def _ranges(starts: Array, ends: Array) -> Array:
    """The numbers of all ranges, each from its start up to but not including its end."""
    counts = ends - starts
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


class ImageFinder:
    """Finds an image in the ground truth.

    Within a dataset, images are identified by their ids. Across datasets they are identified by their file names,
    as ids of different datasets are unrelated.
    """

    def __init__(self, names: Sequence[ImageName], coco_ids: Mapping[str, str] | None = None) -> None:
        self.repeated = 0
        self._by_id: dict[tuple[str, str], int] = {}
        self._by_base_name: dict[str, int] = {}
        self._by_coco_id: dict[str, int] | None = None if coco_ids is None else {}
        for row, name in enumerate(names):
            if (name.dataset, name.image_id) in self._by_id:
                self.repeated += 1
                continue
            self._by_id[name.dataset, name.image_id] = row
            unique = name.base_name not in self._by_base_name
            self._by_base_name[name.base_name] = row if unique else _AMBIGUOUS
            if self._by_coco_id is not None and coco_ids and name.image_id in coco_ids:
                self._by_coco_id.setdefault(coco_ids[name.image_id], row)

    def __call__(self, name: ImageName) -> int:
        if self._by_coco_id is not None:
            return self._by_coco_id.get(name.image_id, NO_IMAGE)
        row = self._by_id.get((name.dataset, name.image_id), NO_IMAGE)
        return row if row != NO_IMAGE else max(self._by_base_name.get(name.base_name, NO_IMAGE), NO_IMAGE)


def read_coco_ids(image_data: Path) -> dict[str, str]:
    """COCO's image ids by Visual Genome's, for the images that come from COCO.

    Raises UserError: the file is missing or is not Visual Genome's image_data.json.
    """
    require_format(image_data, VG_IMAGES)
    coco_ids: dict[str, str] = {}
    for _, item in JsonStream(image_data):
        if (
            isinstance(item, dict)
            and (own := parse_id(item.get("image_id")))
            and (coco := parse_id(item.get("coco_id")))
        ):
            coco_ids[own] = coco
    return coco_ids
