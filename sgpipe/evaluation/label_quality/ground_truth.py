"""Ground truth that relations are compared with: finding an image, its objects, and what is true of two of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.matching import equal_rows
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality.arrays import Graphs, ImageName, iter_graphs, joined
from sgpipe.evaluation.label_quality.measures import NO_MATCH, best_pairs, box_iou
from sgpipe.evaluation.label_quality.synonyms import ClassTable, Vocabulary
from sgpipe.sources.annotated import as_id
from sgpipe.sources.formats import VG_IMAGES, require
from sgpipe.utils.json_stream import JsonStream

NO_IMAGE = -1
_MOST_PREDICATES = 1 << 24  # a predicate is the low bits of a key
_AMBIGUOUS = -2


class Truth:
    """Annotated images, all in memory as arrays."""

    def __init__(
        self, root: Path, labels: Vocabulary, predicates: Vocabulary, coco_ids: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            coco_ids: COCO's image ids by those of the truth; images are found by them only.

        Raises:
            UserError: the folder is no run, or holds no images or no relations.
        """
        parts = list(iter_graphs(root, labels, predicates, "relations"))
        if not any(len(part.subject) for part in parts):
            raise UserError(f"{root} holds no relations to compare with")
        self.graphs = joined(parts)
        self._find = ImageFinder(self.graphs.names, coco_ids)
        self.repeated = self._find.repeated
        places = self._pair_places(self.graphs.subject, self.graphs.object)
        self._pairs, pair = np.unique(places, return_inverse=True)
        keys = pair.reshape(-1) * _MOST_PREDICATES + self.graphs.predicate
        self._keys, self.statements = np.unique(keys, return_index=True)  # the relations, each once

    def find(self, names: Sequence[ImageName]) -> Array:
        """`[names]`, the images that these are, or `NO_IMAGE`."""
        return np.array([self._find(name) for name in names], dtype=np.int64)

    def match(self, graphs: Graphs, images: Array, classes: ClassTable, iou: float) -> Array:
        """Which true object each predicted one is: of its class, and with its box.

        Args:
            images: `[images]` of the truth for those of `graphs`, or `NO_IMAGE`.
            iou: the least overlap.

        Returns:
            `[objects]` or `NO_MATCH`.
        """
        entries, kinds = self._entries(images[images >= 0], classes)
        usable = np.flatnonzero((images[graphs.image] >= 0) & ~graphs.crowd)
        count = 1 + max(kinds.max(initial=0), graphs.label.max(initial=0))
        left, right = equal_rows(
            images[graphs.image[usable]] * count + graphs.label[usable], self.graphs.image[entries] * count + kinds
        )
        left, right = usable[left], entries[right]
        overlap = box_iou(graphs.boxes[left], self.graphs.boxes[right])
        same = overlap >= iou
        return best_pairs(left[same], right[same], overlap[same], len(graphs.image))

    def _entries(self, images: Array, classes: ClassTable) -> tuple[Array, Array]:
        """Objects of these images with a class each; an object that may be of several is there several times."""
        starts, ends = self.graphs.starts[images], self.graphs.starts[images + 1]
        objects = _ranges(starts, ends)
        objects = objects[~self.graphs.crowd[objects]]
        distinct, kind = np.unique(self.graphs.label[objects], return_inverse=True)
        meanings = [classes.classes(number) for number in distinct.tolist()]
        counts = np.array([len(own) for own in meanings], dtype=np.int64)
        flat = np.array([number for own in meanings for number in own], dtype=np.int64)
        firsts = np.cumsum(counts) - counts
        kind = kind.reshape(-1)
        return np.repeat(objects, counts[kind]), flat[_ranges(firsts[kind], (firsts + counts)[kind])]

    def judge(self, subjects: Array, objects: Array, predicates: Array) -> tuple[Array, Array]:
        """What is true of pairs of true objects.

        Args:
            subjects, objects: `[relations]`, true objects or `NO_MATCH`; predicates: `[relations]`.

        Returns:
            `[relations]`: whether just this is true, and whether anything is true of the pair.
        """
        there = (subjects != NO_MATCH) & (objects != NO_MATCH)
        pair, related = _look_up(self._pairs, self._pair_places(subjects, objects))
        related &= there
        _, true = _look_up(self._keys, pair * _MOST_PREDICATES + predicates)
        return true & related, related

    def _pair_places(self, subjects: Array, objects: Array) -> Array:
        return subjects * len(self.graphs.image) + objects


def _look_up(table: Array, keys: Array) -> tuple[Array, Array]:
    """`[keys]`: the place of each in the sorted table, and whether it is there."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys


def _ranges(starts: Array, ends: Array) -> Array:
    """All numbers from each start up to, not including, its end."""
    counts = ends - starts
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


class ImageFinder:
    """Finds the image of the truth that an image is.

    Shards of one dataset name an image by the same id. Other shards do so by the image's file name: ids of
    different datasets are numbers of different things.
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
    """COCO's image ids by Visual Genome's, of the images that have one.

    Raises UserError: the file is missing or another than Visual Genome's image_data.json.
    """
    require(image_data, VG_IMAGES)
    found: dict[str, str] = {}
    for _, item in JsonStream(image_data):
        if isinstance(item, dict) and (own := as_id(item.get("image_id"))) and (coco := as_id(item.get("coco_id"))):
            found[own] = coco
    return found
