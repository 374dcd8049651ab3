"""Shards as flat arrays: the objects and relations of many images at once, numbers for words, and
the ground truth.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.matching import equal_rows
from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.sources import fields
from sgpipe.sources.annotated import require_format
from sgpipe.sources.vocabulary import PredicateSynonyms, category_names, packaged_synonyms
from sgpipe.stages.matching import HeadMatcher, normalise_predicate
from sgpipe.storage.run_records import iter_tables
from sgpipe.storage.shards import VLM_SCORE, flat, lengths
from sgpipe.utils.boxes import iou as box_iou
from sgpipe.utils.boxes import xywh_to_xyxy
from sgpipe.utils.lemmas import predicate_lemma

Source = Literal["relations", "candidates", "vlm_score"]

_COLUMNS = ("image_id", "dataset", "file_name", "width", "height", "objects", "status")
_COCO_PREFIX = re.compile(r"^COCO_[A-Za-z0-9]+_(?=\d+$)")
_DATASETS = ("coco", "objects365")  # the datasets that have synonyms
NO_MATCH = -1
NO_IMAGE = -1
_MOST_PREDICATES = 1 << 24  # a predicate is the low bits of a key


class Vocabulary:
    """Numbers for texts; those with the same meaning (a key) share one. names: by number, the first
    text of each.
    """

    def __init__(self, meaning: Callable[[str], str]) -> None:
        self.names: list[str] = []
        self._meaning = meaning
        self._by_meaning: dict[str, int] = {}
        self._by_text: dict[str, int] = {}

    def number(self, text: str) -> int:
        if text not in self._by_text:
            number = self._by_meaning.setdefault(self._meaning(text), len(self.names))
            if number == len(self.names):
                self.names.append(normalise_predicate(text))
            self._by_text[text] = number
        return self._by_text[text]

    def numbers(self, texts: pa.Array) -> Array:
        """`[texts]` int64."""
        encoded = texts.dictionary_encode()
        distinct = [self.number(text or "") for text in encoded.dictionary.to_pylist()]
        numbers = np.array(distinct, dtype=np.int64)
        return numbers[encoded.indices.to_numpy(zero_copy_only=False)]


def predicate_vocabulary(synonyms: PredicateSynonyms | None = None) -> Vocabulary:
    """Number each key of the table and its texts alike.

    Raises:
        UserError: a text belongs to two predicates.
    """
    canonical: dict[str, str] = {}

    def meaning(text: str) -> str:
        lemma = predicate_lemma(text)
        return canonical.get(lemma, lemma)

    vocabulary = Vocabulary(meaning)
    for name, texts in (synonyms or {}).items():
        for lemma in map(predicate_lemma, (name, *texts)):
            if canonical.setdefault(lemma, predicate_lemma(name)) != predicate_lemma(name):
                raise UserError(
                    f"synonyms: {lemma!r} stands for both {canonical[lemma]!r} and {name!r};"
                    " remove one"
                )
    for name in synonyms or {}:
        vocabulary.number(name)
    return vocabulary


def class_meanings(vocabulary: Vocabulary, predicted: Iterable[str]) -> Callable[[int], list[int]]:
    """Return which classes of a run an object of the ground truth may have, by the number of its
    own.

    A name that is not a class of the run ("man") also stands for the class it names ("person").

    Args:
        predicted: all class names of the run; if they are COCO's or Objects365's, its synonyms
            count.
    """
    names = {normalise_predicate(name) for name in predicted}
    datasets = (
        dataset for dataset in _DATASETS if names.issubset(category_names(dataset).values())
    )
    synonyms = packaged_synonyms(next(datasets, ""))
    known = {vocabulary.number(name) for name in (*names, *synonyms)}
    matcher = HeadMatcher(synonyms)

    def classes(number: int) -> list[int]:
        fitting = () if number in known else matcher.classes(vocabulary.names[number])
        return [number, *map(vocabulary.number, fitting)]

    return classes


@dataclass(frozen=True)
class ImageName:
    """What identifies an image: its dataset, its id there, and its file name without COCO's prefix
    and extension.
    """

    dataset: str
    image_id: str
    base_name: str


@dataclass(frozen=True)
class Graphs:
    """Images with their objects and relations.

    names, ok `[images]`; starts `[images + 1]`, where the objects of each image begin; image,
    category, crowd `[objects]`; boxes `[objects, 4]`, xyxy as shares of the image; subject, object
    (indices into the objects), predicate, confidence and annotated `[relations]`: by people,
    certain.
    """

    names: list[ImageName]
    ok: Array
    starts: Array
    image: Array
    category: Array
    crowd: Array
    boxes: Array
    subject: Array
    object: Array
    predicate: Array
    confidence: Array
    annotated: Array

    @property
    def relation_image(self) -> Array:
        return self.image[self.subject]


def iter_graphs(
    root: Location,
    classes: Vocabulary,
    predicates: Vocabulary,
    source: Source,
    calibration: Calibration | None = None,
) -> Iterator[Graphs]:
    """Yield the shards of a run, one at a time.

    Args:
        source: the relations; every candidate pair with each of its predicates and confidence 1; or
            the relations that have the score of a vision-language model, as their confidence.
        calibration: of the tagger; confidences are its probabilities then, but those of annotations
            stay 1.

    Raises:
        UserError: the folder is not a run, a shard is missing or damaged, or a value is out of
            range.
    """
    column = "pairs" if source == "candidates" else "relations"
    columns = [*_COLUMNS, column]
    if source == "vlm_score":
        columns.append(VLM_SCORE)
    for table in iter_tables(root, columns):
        if table.num_rows:
            yield _graphs(root, table.combine_chunks(), (classes, predicates), column, calibration)


def class_names(root: Location) -> set[str]:
    """Return the class names of all objects.

    Raises:
        UserError: as `iter_graphs`.
    """
    names: set[str] = set()
    for table in iter_tables(root, ("objects.list.element.category",)):
        names.update(pc.unique(pc.struct_field(flat(table["objects"])[1], "category")).to_pylist())
    return names


def _graphs(
    root: Location,
    table: pa.Table,
    words: tuple[Vocabulary, Vocabulary],
    column: str,
    calibration: Calibration | None,
) -> Graphs:
    image, objects = flat(table["objects"])
    owner, relations = flat(table[column])
    counts = lengths(table["objects"])
    starts = np.concatenate([[0], np.cumsum(counts)])
    subject = np.array(pc.struct_field(relations, "subject"), np.int64)
    object_ = np.array(pc.struct_field(relations, "object"), np.int64)
    ends = np.stack([subject, object_])
    if ((ends < 0) | (ends >= counts[owner])).any():
        raise UserError(
            f"{root}: {column} refer to objects that do not exist; regenerate the shards"
        )
    if column == "relations":
        texts = pc.struct_field(relations, "predicate")
        confidences = pc.struct_field(relations, "confidence")
        confidence = np.array(pc.fill_null(confidences, 1.0), np.float32)
        is_outside = ~((confidence >= 0) & (confidence <= 1))
        _refuse(root, table, owner, is_outside, "a confidence from 0 to 1", confidence)
        annotated = np.array(pc.is_null(confidences), bool)
        if calibration is not None:
            probabilities = calibration.probabilities(confidence)
            confidence = np.where(annotated, 1, probabilities).astype(np.float32)
        if VLM_SCORE in table.column_names:
            scores = flat(table[VLM_SCORE])[1]
            known = np.array(pc.is_valid(scores), bool)
            owner = owner[known]
            subject = subject[known]
            object_ = object_[known]
            texts = texts.filter(pa.array(known))
            confidence = np.array(scores.drop_null(), np.float32)
            annotated = np.zeros(known.sum(), dtype=bool)
    else:
        lists = pc.struct_field(relations, "predicates")
        predicates = lengths(lists)
        owner = np.repeat(owner, predicates)
        subject = np.repeat(subject, predicates)
        object_ = np.repeat(object_, predicates)
        texts = lists.flatten()
        confidence = np.ones(len(texts), dtype=np.float32)
        annotated = np.zeros(len(texts), dtype=bool)
    base_names = map(image_base_name, table["file_name"].to_pylist())
    names = map(ImageName, table["dataset"].to_pylist(), table["image_id"].to_pylist(), base_names)
    return Graphs(
        names=list(names),
        ok=np.array(pc.equal(table["status"], "ok"), bool),
        starts=starts,
        image=image,
        category=words[0].numbers(pc.struct_field(objects, "category")),
        crowd=np.array(pc.fill_null(pc.struct_field(objects, "iscrowd"), False), bool),
        boxes=_boxes(root, objects, table, image),
        subject=starts[owner] + subject,
        object=starts[owner] + object_,
        predicate=words[1].numbers(texts),
        confidence=confidence,
        annotated=annotated,
    )


def image_base_name(file_name: str) -> str:
    """Return the file name without folder, extension, and the prefix that COCO 2014 puts before the
    number.
    """
    return _COCO_PREFIX.sub("", PurePosixPath(file_name).stem)


def _boxes(root: Location, objects: pa.Array, table: pa.Table, image: Array) -> Array:
    """`[objects, 4]` xyxy as shares of the image, whose size may differ between datasets."""
    column = pc.struct_field(objects, "bbox")
    sizes = lengths(column)
    _refuse(root, table, image, sizes != 4, "the number of values of a bbox, 4", sizes)
    boxes = np.array(column.flatten(), np.float64).reshape(-1, 4)
    is_wrong = np.logical_or(~np.isfinite(boxes).all(1), (boxes[:, 2:] < 0).any(1))
    _refuse(root, table, image, is_wrong, "x, y, width, height", boxes)
    widths = np.array(table["width"], np.float64)
    heights = np.array(table["height"], np.float64)
    sides = np.stack([widths, heights], axis=1)
    return xywh_to_xyxy(boxes) / np.maximum(np.tile(sides, 2), 1)[image]


def _refuse(
    root: Location, table: pa.Table, image: Array, wrong: Array, expected: str, values: Array
) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{root}: image {table['image_id'][image[row]]}: {values[row].tolist()} is not"
            f" {expected}"
        )


def best_pairs(first: Array, second: Array, quality: Array, count: int) -> Array:
    """Match one to one, the best of the candidate pairs left first; ties go to the first. Arguments
    `[candidates]`.

    Returns the match of each of the `count` members of the first side, or `NO_MATCH`.
    """
    order = np.lexsort((second, first, -quality))
    first = first[order]
    second = second[order]
    matches = np.full(count, NO_MATCH)
    while len(first):
        # A pair that is the best for both its members is final, whatever happens to the others.
        best_of_first = np.unique(first, return_index=True)[1]
        best_of_second = np.unique(second, return_index=True)[1]
        chosen = np.intersect1d(best_of_first, best_of_second)
        matches[first[chosen]] = second[chosen]
        free = ~(np.isin(first, first[chosen]) | np.isin(second, second[chosen]))
        first = first[free]
        second = second[free]
    return matches


class GroundTruthIndex:
    def __init__(
        self,
        root: Location,
        classes: Vocabulary,
        predicates: Vocabulary,
        coco_ids: Mapping[str, str] | None = None,
    ) -> None:
        """coco_ids: COCO's by those of the ground truth; images are found only by these then.

        Raises:
            UserError: the folder is not a run, or contains no relations.
        """
        tables = list(iter_tables(root, (*_COLUMNS, "relations")))
        if not any(pc.sum(pc.list_value_length(table["relations"])).as_py() for table in tables):
            raise UserError(f"{root} contains no relations to compare with")
        table = pa.concat_tables(tables)
        table = table.filter(pc.equal(table["status"], "ok")).combine_chunks()
        self.graphs = _graphs(root, table, (classes, predicates), "relations", None)
        self._find = image_finder(self.graphs.names, coco_ids)
        places = self.graphs.subject * len(self.graphs.image) + self.graphs.object
        self._pairs, pair = np.unique(places, return_inverse=True)
        keys = pair.reshape(-1) * _MOST_PREDICATES + self.graphs.predicate
        # one row per distinct relation
        self._keys, self.statements = np.unique(keys, return_index=True)

    def find(self, names: Sequence[ImageName]) -> Array:
        return np.array([self._find(name) for name in names], dtype=np.int64)

    def match(
        self, graphs: Graphs, images: Array, classes: Callable[[int], list[int]], iou: float
    ) -> Array:
        """Match predicted objects with those of the ground truth by class and a minimum IoU of
        boxes.

        Args:
            images: `[images]` of the ground truth, or `NO_IMAGE`.

        Returns:
            `[objects]` of it, or `NO_MATCH`.
        """
        known = images[images >= 0]
        objects = _ranges(self.graphs.starts[known], self.graphs.starts[known + 1])
        objects = objects[~self.graphs.crowd[objects]]
        distinct, kind = np.unique(self.graphs.category[objects], return_inverse=True)
        # an object may be of several classes
        meanings = [classes(number) for number in distinct.tolist()]
        counts = np.array(list(map(len, meanings)), dtype=np.int64)
        firsts = np.cumsum(counts) - counts
        entries = np.repeat(objects, counts[kind])
        flat = np.array(list(chain.from_iterable(meanings)), dtype=np.int64)
        kinds = flat[_ranges(firsts[kind], (firsts + counts)[kind])]
        usable = np.flatnonzero((images[graphs.image] >= 0) & ~graphs.crowd)
        count = 1 + max(kinds.max(initial=0), graphs.category.max(initial=0))
        left, right = equal_rows(
            images[graphs.image[usable]] * count + graphs.category[usable],
            self.graphs.image[entries] * count + kinds,
        )
        left = usable[left]
        right = entries[right]
        overlap = box_iou(graphs.boxes[left], self.graphs.boxes[right])
        is_match = overlap >= iou
        left = left[is_match]
        right = right[is_match]
        return best_pairs(left, right, overlap[is_match], len(graphs.image))

    def has(self, subjects: Array, objects: Array, predicates: Array) -> Array:
        """Return whether the ground truth has relations between its objects, or `NO_MATCH`. All
        `[relations]`.
        """
        pair, related = _look_up(self._pairs, subjects * len(self.graphs.image) + objects)
        _, true = _look_up(self._keys, pair * _MOST_PREDICATES + predicates)
        return true & related & (subjects != NO_MATCH) & (objects != NO_MATCH)


def _look_up(table: Array, keys: Array) -> tuple[Array, Array]:
    """`[keys]`: the position of each in the sorted table, and whether the table has it."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys


def _ranges(starts: Array, ends: Array) -> Array:
    counts = ends - starts
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def image_finder(
    names: Sequence[ImageName], coco_ids: Mapping[str, str] | None = None
) -> Callable[[ImageName], int]:
    """Return what finds images in the ground truth: within a dataset by id, across datasets by file
    name.

    Of images that occur twice, the first is found.

    Args:
        coco_ids: as for `GroundTruthIndex`.
    """
    rows: dict[object, int] = {}  # by dataset and id, by COCO's id, or by base name
    for row, name in enumerate(names):
        if (name.dataset, name.image_id) in rows:
            continue
        rows[name.dataset, name.image_id] = row
        if coco_ids is None:
            rows[name.base_name] = NO_IMAGE if name.base_name in rows else row  # ambiguous
        elif name.image_id in coco_ids:
            rows.setdefault(coco_ids[name.image_id], row)

    def find(name: ImageName) -> int:
        if coco_ids is not None:
            return rows.get(name.image_id, NO_IMAGE)
        return rows.get((name.dataset, name.image_id), rows.get(name.base_name, NO_IMAGE))

    return find


def read_coco_ids(image_data: Location) -> dict[str, str]:
    """COCO's image ids by Visual Genome's, for the images that come from COCO.

    Raises:
        UserError: the file is missing or is not Visual Genome's image_data.json.
    """
    require_format(image_data, "image data")
    ids = {}
    for _, item in JsonStream(image_data):
        if isinstance(item, dict):
            image_id = fields.identifier(item.get("image_id"))
            coco_id = fields.identifier(item.get("coco_id"))
            if image_id and coco_id:
                ids[image_id] = coco_id
    return ids
