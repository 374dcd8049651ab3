"""The layout model at run time: a network in numpy that compares every candidate pair with its
rivals.

A first part describes each candidate pair (a subject and any other box of its image). Pairs are
then compared with the pairs of the same object, of the same subject, of the same subject and class,
and of the image: by the greatest and the mean of what the first part computed. A second part
decides with both whether the pair interacts, and how.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_safetensors
from thinc.api import NumpyOps

from sgpipe.errors import UserError, first_line
from sgpipe.sources.vocabulary import packaged_synonyms
from sgpipe.stages.matching import HeadMatcher
from sgpipe.stages.tag.layout.geometry import describe
from sgpipe.stages.tag.layout.scene import UNKNOWN, FloatArray, ImageLayout, IntArray, Rows, Scene
from sgpipe.utils.atomic import write_text

VERSION = 1  # of the network and of the numbers that describe pairs
WEIGHTS = Path(__file__).parent / "weights"  # of the model that ships
CONFIG = "config.json"
MODEL = "model.safetensors"
CLIPPED = 6.0  # standard deviations
_ROWS = 1 << 15  # candidate pairs that are scored together: bounds memory
_STEEPEST = 30.0  # logits beyond have the same probability
_CACHED_CLASSES = 1 << 14


@dataclass(frozen=True)
class PairScores:
    """Probabilities of pairs, float32.

    Attributes:
        interacts: [pairs] that the subject does something with the object
        actions: [pairs, actions] that it does this, if it does something; several can hold
    """

    interacts: FloatArray
    actions: FloatArray


class LayoutModel:
    """Scores pairs of boxes by what people annotated in images with similar boxes.

    Attributes:
        actions: the predicates that it knows
        subject_classes: the classes whose boxes can be subjects; pairs with another subject have
            probability 0
        classes: the classes that it knows; another class counts as the one that it is a synonym of,
            or as any class
        weights: of all networks, by name
    """

    def __init__(
        self,
        weights: Mapping[str, FloatArray],
        classes: Sequence[str],
        subject_classes: Sequence[str],
        actions: Sequence[str],
    ) -> None:
        self.actions = tuple(actions)
        self.subject_classes = tuple(subject_classes)
        self.classes = tuple(classes)
        self.weights = dict(weights)
        self._networks = _networks(weights)
        self._numbers = {name: number for number, name in enumerate(classes, start=1)}
        self._subjects = {self._numbers[name] for name in subject_classes}
        self._matcher = HeadMatcher(packaged_synonyms("coco"), classes)
        self._known = lru_cache(_CACHED_CLASSES)(self._class_number)

    @classmethod
    def load(cls, folder: Path | None = None) -> LayoutModel:
        """Load a model from a folder; None: the one that ships.

        Raises:
            UserError: a file is missing, damaged or of another version
        """
        folder = folder or WEIGHTS
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            version = config["version"]
            if version != VERSION:
                raise UserError(
                    f"layout model {folder} has version {version}, this sgpipe reads version"
                    f" {VERSION}; train it again with `sgpipe train layout`"
                )
            weights = load_file(folder / MODEL)
            model = cls(weights, config["classes"], config["subject_classes"], config["actions"])
            model._check_shapes(folder)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            SafetensorError,
        ) as reason:
            raise UserError(f"layout model {folder} cannot be read: {first_line(reason)}") from None
        return model

    def save(self, folder: Path) -> None:
        """Write the model into a folder, which is created if it is missing: weights in half
        precision and a config.
        """
        folder.mkdir(parents=True, exist_ok=True)
        halves = {name: value.astype(np.float16) for name, value in self.weights.items()}
        # safetensors' own files are for one user alone
        (folder / MODEL).write_bytes(to_safetensors(halves))
        config: dict[str, object] = {
            "version": VERSION,
            "actions": self.actions,
            "subject_classes": self.subject_classes,
            "classes": self.classes,
        }
        write_text(folder / CONFIG, json.dumps(config, indent=1) + "\n")

    def is_subject(self, name: str) -> bool:
        """Return whether boxes of a class can be subjects: the class, or one that it is a synonym
        of.
        """
        return self._known(name) in self._subjects

    def score(self, layout: ImageLayout, pairs: IntArray) -> PairScores:
        """Score pairs `[pairs, 2]` of subject and object, positions among the boxes of an image."""
        return self.score_many([layout], [pairs])[0]

    def score_many(
        self, layouts: Sequence[ImageLayout], pairs: Sequence[IntArray]
    ) -> list[PairScores]:
        """Score the pairs of several images, as `score`; faster than one image at a time, with the
        same results.
        """
        scores: list[PairScores] = []
        for first, last in _groups(layouts):
            scores += self._score_group(layouts[first:last], pairs[first:last])
        return scores

    def _score_group(
        self, layouts: Sequence[ImageLayout], pairs: Sequence[IntArray]
    ) -> list[PairScores]:
        scene = self._scene(layouts)
        shaped = [np.asarray(pair, np.int64).reshape(-1, 2) for pair in pairs]
        counts = [len(positions) for positions in shaped]
        joined = np.concatenate(shaped) + np.repeat(scene.starts[:-1], counts)[:, None]
        probabilities = self._probabilities(scene, joined)
        probabilities[~scene.is_subject[joined[:, 0]] | (joined[:, 0] == joined[:, 1])] = 0
        parts = np.split(probabilities, np.cumsum(counts)[:-1])
        return [PairScores(part[:, 0], part[:, 1:]) for part in parts]

    def _scene(self, layouts: Sequence[ImageLayout]) -> Scene:
        names = {name for layout in layouts for name in layout.classes}
        return Scene.of(layouts, {name: self._known(name) for name in names}, self._subjects)

    def _class_number(self, name: str) -> int:
        """Return the number of a class, or of the class that it is a synonym of."""
        if name in self._numbers:
            return self._numbers[name]
        for synonym in self._matcher.classes(name, ""):
            if synonym in self._numbers:
                return self._numbers[synonym]
        return UNKNOWN

    def _probabilities(self, scene: Scene, pairs: IntArray) -> FloatArray:
        """Return `[pairs, 1 + actions]`, the mean of all networks; rows of pairs without a subject
        are not filled.
        """
        total = np.zeros((len(pairs), 1 + len(self.actions)), np.float32)
        subjects = list(scene.blocks(_ROWS))
        if not len(pairs) or not subjects or not scene.others_of(subjects[0]).any():
            return total
        only = Block.of(scene, subjects[0]) if len(subjects) == 1 else None
        located = [_positions(scene, subject, pairs) for subject in subjects]
        for network in self._networks:
            rivals = Rivals(scene, network.width)
            for of_block in subjects:
                block = only or Block.of(scene, of_block)
                hidden = network.describe(block)
                rivals.add(block, hidden)
            for of_block, (asked, positions) in zip(subjects, located, strict=True):
                if only is None:
                    block = Block.of(scene, of_block)
                    hidden = network.describe(block)
                if len(asked):
                    compared = rivals.beside(block, hidden, positions)
                    total[asked] += _sigmoid(network.decide(compared, block.classes[positions]))
        return total / np.float32(len(self._networks))

    def _check_shapes(self, folder: Path) -> None:
        """Raise UserError unless the weights fit the lists of classes and actions."""
        outputs = self.weights["0.decide.2.weight"].shape[0]
        classes = self.weights["0.object.weight"].shape[0]
        if (outputs, classes) != (1 + len(self.actions), 1 + len(self.classes)):
            raise UserError(
                f"layout model {folder} cannot be read: {MODEL} and {CONFIG} are not of the same"
                " model"
            )


@dataclass(frozen=True)
class Block:
    """All candidate pairs of some subjects, and which of them are rivals.

    Attributes:
        rows: the pairs
        features: [rows, features]
        classes: [rows] of the objects
        by_object, by_image, by_subject, by_class: the rivals; `by_class` of the same subject and
        class of the object
    """

    rows: Rows
    features: FloatArray
    classes: IntArray
    by_object: Grouping
    by_image: Grouping
    by_subject: Grouping
    by_class: Grouping

    @classmethod
    def of(cls, scene: Scene, subjects: IntArray) -> Block:
        rows = scene.rows_of(subjects)
        classes = scene.classes[rows.objects]
        of_class = rows.subjects * (int(scene.classes.max(initial=0)) + 1) + classes
        return cls(
            rows,
            describe(scene, rows),
            classes,
            by_object=Grouping.by(rows.objects),
            by_image=Grouping.by(scene.images[rows.subjects]),
            by_subject=Grouping.by(rows.subjects),
            by_class=Grouping.by(of_class),
        )


class Network:
    """A network with its weights, which are named as in `fit.LayoutNetwork`."""

    def __init__(self, weights: Mapping[str, FloatArray]) -> None:
        self._weights = {
            name: np.ascontiguousarray(value, np.float32) for name, value in weights.items()
        }
        self._gemm = NumpyOps().gemm  # its rows do not depend on the other rows, bit for bit
        self.width = self._weights["describe.1.weight"].shape[0]

    def describe(self, block: Block) -> FloatArray:
        """The first part: `[rows, width]`."""
        features = (block.features - self._weights["mean"]) * self._weights["scale"]
        hidden = self._linear("describe.0", np.clip(features, -CLIPPED, CLIPPED))
        hidden += self._weights["object.weight"][block.classes]
        return np.maximum(self._linear("describe.1", np.maximum(hidden, 0)), 0)

    def decide(self, compared: FloatArray, classes: IntArray) -> FloatArray:
        """The second part: logits `[pairs, 1 + actions]` of what `Rivals.beside` returns and
        classes of objects.
        """
        state = self._linear("decide.0", compared)
        state += self._weights["object_again.weight"][classes]
        state = np.maximum(self._linear("decide.1", np.maximum(state, 0)), 0)
        return self._linear("decide.2", state)

    def _linear(self, name: str, rows: FloatArray) -> FloatArray:
        weight = self._weights[f"{name}.weight"]
        bias = self._weights[f"{name}.bias"]
        product: FloatArray = np.asarray(
            self._gemm(np.ascontiguousarray(rows), weight, trans2=True)
        )
        return np.add(product, bias, out=product)


@dataclass(frozen=True)
class Grouping:
    """Which rows belong together.

    Attributes:
        numbers: [groups] what the rows of each group have in common, ascending
        order: [rows] the rows, group by group
        starts: [groups] where each group begins in that order
        counts: [groups] rows of each group
        groups: [rows] the group of each row
    """

    numbers: IntArray
    order: IntArray
    starts: IntArray
    counts: IntArray
    groups: IntArray

    @classmethod
    def by(cls, numbers: IntArray) -> Grouping:
        """Put the rows together that have the same of `numbers` `[rows]`; there is at least one
        row.
        """
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        is_first = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        starts = np.flatnonzero(is_first)
        groups = np.empty_like(order)
        groups[order] = np.cumsum(is_first) - 1
        return cls(ordered[starts], order, starts, np.diff(starts, append=len(numbers)), groups)

    def greatest(self, values: FloatArray) -> FloatArray:
        """Return `[groups, width]` of `[rows, width]`."""
        return np.maximum.reduceat(values[self.order], self.starts)

    def total(self, values: FloatArray) -> FloatArray:
        """Return `[groups, width]` of `[rows, width]`."""
        return np.add.reduceat(values[self.order], self.starts)

    def mean(self, values: FloatArray) -> FloatArray:
        """Return `[groups, width]` of `[rows, width]`."""
        return np.divide(self.total(values), self.counts[:, None], dtype=np.float32)


class Rivals:
    """What all candidate pairs of each object, and of each image, have in common; taken in block by
    block.
    """

    def __init__(self, scene: Scene, width: int) -> None:
        boxes = len(scene.boxes)
        images = scene.images_count
        self._scene = scene
        self._object_greatest = np.zeros((boxes, width), np.float32)
        self._object_total = np.zeros((boxes, width), np.float32)
        self._object_count = np.zeros((boxes, 1), np.float32)
        self._image_total = np.zeros((images, width), np.float32)
        self._image_count = np.zeros((images, 1), np.float32)

    def add(self, block: Block, hidden: FloatArray) -> None:
        """Take in the descriptions `[rows, width]` of a block."""
        objects = block.by_object
        images = block.by_image
        greatest = np.maximum(self._object_greatest[objects.numbers], objects.greatest(hidden))
        self._object_greatest[objects.numbers] = greatest
        self._object_total[objects.numbers] += objects.total(hidden)
        self._object_count[objects.numbers] += objects.counts[:, None]
        self._image_total[images.numbers] += images.total(hidden)
        self._image_count[images.numbers] += images.counts[:, None]

    def beside(self, block: Block, hidden: FloatArray, positions: IntArray) -> FloatArray:
        """Return the descriptions of rows beside those of their rivals, `[positions, 7 * width]`.

        Args:
            block: all candidate pairs of some subjects
            hidden: their descriptions, `[rows, width]`
            positions: the rows to return
        """
        objects = block.rows.objects[positions]
        images = self._scene.images[objects]
        subjects = block.by_subject.groups[positions]
        classes = block.by_class.groups[positions]
        parts = [
            hidden[positions],
            self._object_greatest[objects],
            self._object_total[objects] / self._object_count[objects],
            block.by_subject.greatest(hidden)[subjects],
            block.by_subject.mean(hidden)[subjects],
            block.by_class.greatest(hidden)[classes],
            self._image_total[images] / self._image_count[images],
        ]
        return np.concatenate(parts, axis=1)


def _networks(weights: Mapping[str, FloatArray]) -> list[Network]:
    """Return the networks of a model, whose weights begin with their numbers."""
    members: dict[str, dict[str, FloatArray]] = {}
    for name, value in weights.items():
        number, _, of_network = name.partition(".")
        members.setdefault(number, {})[of_network] = value
    return [Network(members[number]) for number in sorted(members)]


def _groups(layouts: Sequence[ImageLayout]) -> Iterator[tuple[int, int]]:
    """Yield the first and last of images that are scored together; few enough, or a single one."""
    first = 0
    candidates = 0
    for position, layout in enumerate(layouts):
        of_image = len(layout.classes) ** 2
        if candidates and candidates + of_image > _ROWS:
            yield first, position
            first = position
            candidates = 0
        candidates += of_image
    if first < len(layouts):
        yield first, len(layouts)


def _positions(scene: Scene, subjects: IntArray, pairs: IntArray) -> tuple[IntArray, IntArray]:
    """Return which pairs have one of a block's subjects, and the row of each in the block.

    Args:
        scene: the boxes
        subjects: those of the block, ascending
        pairs: [pairs, 2] positions of boxes of the scene
    """
    block = np.minimum(np.searchsorted(subjects, pairs[:, 0]), len(subjects) - 1)
    asked = np.flatnonzero((subjects[block] == pairs[:, 0]) & (pairs[:, 0] != pairs[:, 1]))
    counts = scene.others_of(subjects)
    starts = np.cumsum(counts) - counts
    subject, thing = pairs[asked].T
    within = thing - scene.starts[scene.images[subject]]
    return asked, starts[block[asked]] + within - (thing > subject)


def _sigmoid(logits: FloatArray) -> FloatArray:
    odds = np.exp(np.clip(logits, -_STEEPEST, _STEEPEST))
    return np.divide(odds, 1 + odds, dtype=np.float32)
