"""Training of the layout model with PyTorch: minutes on one core for 10,000 images, the same
weights every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sgpipe.errors import UserError
from sgpipe.stages.tag.layout.geometry import describe
from sgpipe.stages.tag.layout.model import CLIPPED, LayoutModel
from sgpipe.stages.tag.layout.scene import UNKNOWN, FloatArray, ImageLayout, IntArray, Scene

_MIN_DEVIATION = 1e-3  # of a feature; those that never change are not blown up


@dataclass(frozen=True)
class LayoutExample:
    """An image whose interactions are known.

    Attributes:
        layout: its boxes
        relations: (subject, predicates, object), positions among the boxes; all other pairs are
            negatives
        weight: of the image in the loss
    """

    layout: ImageLayout
    relations: Sequence[tuple[int, Sequence[str], int]]
    weight: float = 1.0


@dataclass(frozen=True)
class LayoutSettings:
    """Settings of a training.

    Attributes:
        seed: of weights, order and dropout; the networks have this one and the next ones
        networks: whose mean probabilities are the model's
        epochs: how often each image is seen, at least
        min_steps: of few images, each is seen more often than in `epochs`
        batch: images of a step
        learning_rate: the highest one
        weight_decay: of AdamW
        width: of the description of a pair
        dropout: share of the values left out
        class_dropout: share of the boxes whose class is left out, so that unknown classes can be
            scored
        actions_weight: of the actions in the loss, beside 1 for whether a pair interacts
        average: decay of the moving average of the weights, which is returned
    """

    seed: int = 0
    networks: int = 3
    epochs: int = 18
    min_steps: int = 600
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    width: int = 48
    dropout: float = 0.15
    class_dropout: float = 0.05
    actions_weight: float = 0.6
    average: float = 0.998


def fit_layout(
    examples: Iterable[LayoutExample], settings: LayoutSettings | None = None
) -> LayoutModel:
    """Train a layout model: bit for bit the same for the same examples and settings.

    Its predicates, classes and the classes of subjects are those of the examples.

    Raises:
        UserError: no example has a relation, or no pair is a negative
    """
    chosen = list(examples)
    settings = settings or LayoutSettings()
    vocabulary = Vocabulary.of(chosen)
    with _one_thread():
        return Fitter(chosen, vocabulary, settings).fit()


@dataclass(frozen=True)
class Vocabulary:
    """Classes, those of subjects, and predicates, in alphabetical order."""

    classes: tuple[str, ...]
    subject_classes: tuple[str, ...]
    actions: tuple[str, ...]

    @classmethod
    def of(cls, examples: Sequence[LayoutExample]) -> Vocabulary:
        classes: set[str] = set()
        subjects: set[str] = set()
        actions: set[str] = set()
        for example in examples:
            classes.update(example.layout.classes)
            for subject, predicates, _ in example.relations:
                subjects.add(example.layout.classes[subject])
                actions.update(predicates)
        if not actions:
            raise UserError(
                "no image has a relation: the layout model learns from images with annotated"
                " relations"
            )
        return cls(tuple(sorted(classes)), tuple(sorted(subjects)), tuple(sorted(actions)))


class Table:
    """The candidate pairs of all examples as tensors, one example after the other."""

    def __init__(self, examples: Sequence[LayoutExample], vocabulary: Vocabulary) -> None:
        numbers = {name: number for number, name in enumerate(vocabulary.classes, start=1)}
        subjects = {numbers[name] for name in vocabulary.subject_classes}
        scene = Scene.of([example.layout for example in examples], numbers, subjects)
        rows = scene.rows_of(np.flatnonzero(scene.is_subject))
        self.features = describe(scene, rows)
        self.subjects = rows.subjects
        self.objects = rows.objects
        self.images = scene.images[rows.subjects]
        self.classes = scene.classes
        self.starts = np.searchsorted(self.images, np.arange(len(examples) + 1))
        self.weights = np.array([example.weight for example in examples], np.float32)[self.images]
        self.targets = self._targets(examples, scene, vocabulary.actions)

    def rows_of(self, images: IntArray) -> IntArray:
        """Return the rows of images, which are in ascending order."""
        ranges = [np.arange(self.starts[image], self.starts[image + 1]) for image in images]
        return np.concatenate(ranges)

    def _targets(
        self, examples: Sequence[LayoutExample], scene: Scene, actions: Sequence[str]
    ) -> FloatArray:
        """Return `[rows, 1 + actions]`: whether the pair interacts, and each action."""
        columns = {action: column for column, action in enumerate(actions, start=1)}
        targets = np.zeros((len(self.subjects), 1 + len(actions)), np.float32)
        counts = np.bincount(self.subjects, minlength=len(scene.boxes))
        first_row = np.cumsum(counts) - counts
        for image, example in enumerate(examples):
            start = int(scene.starts[image])
            for subject, predicates, thing in example.relations:
                if subject == thing:
                    continue
                row = first_row[start + subject] + thing - (thing > subject)
                targets[row, 0] = 1
                targets[row, [columns[predicate] for predicate in predicates]] = 1
        return targets


class LayoutNetwork(nn.Module):
    """The network of `LayoutModel` in PyTorch, with the same names of weights."""

    def __init__(self, features: int, classes: int, outputs: int, settings: LayoutSettings) -> None:
        super().__init__()
        width = settings.width
        self.object = nn.Embedding(1 + classes, 2 * width)
        self.object_again = nn.Embedding(1 + classes, 2 * width)
        self.describe = nn.ModuleList([nn.Linear(features, 2 * width), nn.Linear(2 * width, width)])
        self.decide = nn.ModuleList(
            [nn.Linear(7 * width, 2 * width), nn.Linear(2 * width, 64), nn.Linear(64, outputs)]
        )
        self.dropout = nn.Dropout(settings.dropout)
        for table in (self.object, self.object_again):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, features: Tensor, batch: Batch) -> Tensor:
        """Return logits `[rows, outputs]`."""
        hidden = torch.relu(self.describe[0](features) + self.object(batch.classes))
        hidden = torch.relu(self.describe[1](self.dropout(hidden)))
        compared = torch.cat([hidden, *batch.rivals(hidden)], dim=1)
        state = torch.relu(self.decide[0](compared) + self.object_again(batch.classes))
        state = torch.relu(self.decide[1](self.dropout(state)))
        logits: Tensor = self.decide[2](self.dropout(state))
        return logits


class Batch:
    """Which rows of some images are rivals. `classes`: [rows] number of the object's class."""

    def __init__(self, table: Table, rows: IntArray, dropped: Tensor | None = None) -> None:
        subjects = table.subjects[rows]
        objects = table.objects[rows]
        classes = table.classes[objects]
        same = subjects * (int(table.classes.max()) + 1) + classes
        self._subject = _numbered(subjects)
        self._object = _numbered(objects)
        self._same_class = _numbered(same)
        self._image = _numbered(table.images[rows])
        known = torch.from_numpy(classes)
        if dropped is None:
            self.classes = known
        else:
            self.classes = torch.where(dropped[self._object[0]], UNKNOWN, known)

    def rivals(self, hidden: Tensor) -> list[Tensor]:
        """Return what each row is compared with, each `[rows, width]`, in the order of
        `Rivals.beside`.
        """
        return [
            _greatest(hidden, self._object),
            _mean(hidden, self._object),
            _greatest(hidden, self._subject),
            _mean(hidden, self._subject),
            _greatest(hidden, self._same_class),
            _mean(hidden, self._image),
        ]


def _numbered(keys: IntArray) -> tuple[Tensor, int]:
    """Return keys numbered from 0 on, and how many different ones there are."""
    present, inverse = np.unique(keys, return_inverse=True)
    return torch.from_numpy(inverse), len(present)


def _greatest(hidden: Tensor, grouping: tuple[Tensor, int]) -> Tensor:
    groups, count = grouping
    index = groups[:, None].expand_as(hidden)
    empty = hidden.new_zeros(count, hidden.shape[1])
    return empty.scatter_reduce(0, index, hidden, "amax")[groups]


def _mean(hidden: Tensor, grouping: tuple[Tensor, int]) -> Tensor:
    groups, count = grouping
    total = hidden.new_zeros(count, hidden.shape[1]).index_add(0, groups, hidden)
    rows = torch.bincount(groups, minlength=count).to(hidden.dtype)
    return (total / rows[:, None])[groups]


class Fitter:
    """Trains a network on a table of candidate pairs."""

    def __init__(
        self, examples: Sequence[LayoutExample], vocabulary: Vocabulary, settings: LayoutSettings
    ) -> None:
        self.table = Table(examples, vocabulary)
        self.vocabulary = vocabulary
        self.settings = settings
        if self.table.targets[:, 0].all():
            raise UserError(
                "every candidate pair interacts: the layout model needs pairs that do nothing, too"
            )
        self.standardise()
        scaled = np.clip((self.table.features - self.mean) * self.scale, -CLIPPED, CLIPPED)
        self._features = torch.from_numpy(scaled)
        self._targets = torch.from_numpy(self.table.targets)
        self._weights = torch.from_numpy(self.table.weights)

    def standardise(self) -> None:
        """Set what is taken off the features, and by what they are multiplied then."""
        self.mean = rounded(self.table.features.mean(axis=0))
        self.scale = rounded(1 / np.maximum(self.table.features.std(axis=0), _MIN_DEVIATION))

    def make_network(self) -> LayoutNetwork:
        """Return a network with random weights."""
        classes = len(self.vocabulary.classes)
        outputs = 1 + len(self.vocabulary.actions)
        return LayoutNetwork(self._features.shape[1], classes, outputs, self.settings)

    def fit(self) -> LayoutModel:
        """Train the networks and return them as a model."""
        seeds = range(self.settings.seed, self.settings.seed + self.settings.networks)
        return to_model(
            [self._network(seed) for seed in seeds], self.mean, self.scale, self.vocabulary
        )

    def _network(self, seed: int) -> dict[str, Tensor]:
        """Train a network and return its weights, rounded as they are saved."""
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            average = self._train(self.make_network(), generator)
        return {name: value.half().float() for name, value in average.items()}

    def _train(self, network: LayoutNetwork, generator: torch.Generator) -> dict[str, Tensor]:
        """Train, and return the moving average of the weights."""
        settings = self.settings
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        images = np.flatnonzero(np.diff(self.table.starts))
        steps_per_epoch = math.ceil(len(images) / settings.batch)
        epochs = max(settings.epochs, math.ceil(settings.min_steps / steps_per_epoch))
        steps = epochs * steps_per_epoch
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.learning_rate, total_steps=steps, pct_start=0.1
        )
        average = {name: value.detach().clone() for name, value in network.state_dict().items()}
        for step, chosen in enumerate(self._batches(images, epochs, generator)):
            loss = self._loss(network, chosen, generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            decay = min(settings.average, (1 + step) / (10 + step))
            for name, value in network.state_dict().items():
                average[name].lerp_(value, 1 - decay)
        return average

    def _batches(
        self, images: IntArray, epochs: int, generator: torch.Generator
    ) -> Iterator[IntArray]:
        """Yield the images of each step, ascending."""
        for _ in range(epochs):
            order = images[torch.randperm(len(images), generator=generator).numpy()]
            for start in range(0, len(order), self.settings.batch):
                yield np.sort(order[start : start + self.settings.batch])

    def _loss(self, network: LayoutNetwork, images: IntArray, generator: torch.Generator) -> Tensor:
        rows = self.table.rows_of(images)
        objects = len(np.unique(self.table.objects[rows]))
        dropped = torch.rand(objects, generator=generator) < self.settings.class_dropout
        logits = network(self._features[rows], Batch(self.table, rows, dropped))
        targets = self._targets[rows]
        weights = self._weights[rows]
        losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        interacts = losses[:, 0] * weights
        actions = losses[:, 1:].sum(dim=1) * targets[:, 0] * weights
        total: Tensor = interacts.sum() + self.settings.actions_weight * actions.sum()
        return total / len(images)


def to_model(
    networks: Sequence[Mapping[str, Tensor]],
    mean: FloatArray,
    scale: FloatArray,
    vocabulary: Vocabulary,
) -> LayoutModel:
    """Return networks as a model.

    Args:
        networks: states of `LayoutNetwork`
        mean: [features] what is taken off the features
        scale: [features] by what they are multiplied then
        vocabulary: of the classes and outputs
    """
    arrays: dict[str, FloatArray] = {}
    for number, weights in enumerate(networks):
        arrays |= {f"{number}.{name}": value.numpy() for name, value in weights.items()}
        arrays |= {f"{number}.mean": mean, f"{number}.scale": scale}
    return LayoutModel(arrays, vocabulary.classes, vocabulary.subject_classes, vocabulary.actions)


def rounded(values: FloatArray) -> FloatArray:
    """Round to half precision, in which they are saved."""
    return values.astype(np.float16).astype(np.float32)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: sums do not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
