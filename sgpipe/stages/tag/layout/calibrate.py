"""How sure a layout model of few images may be, by cross-validation.

Few images are seen so often that a network becomes too sure of what it has seen. The logits of
whether a pair interacts, and those of the actions, are divided by a temperature each: the one with
the smallest log loss on images that a network has not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np

from sgpipe.errors import UserError
from sgpipe.stages.tag.layout.fit import Fitter, LayoutExample, LayoutSettings, Vocabulary, rounded
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.stages.tag.layout.scene import BoolArray, FloatArray

FOLDS = 5
MAX_IMAGES = 2_000  # of more, probabilities are calibrated as they come
_TEMPERATURES = np.geomspace(0.5, 8, 81)
_SMALLEST = 1e-6  # distance of a probability from 0 and 1
_LAST_LAYER = "decide.2"


@dataclass(frozen=True)
class Temperatures:
    """By what logits are divided.

    Attributes:
        interacts: of whether a pair interacts
        actions: of what an interacting pair does
    """

    interacts: float
    actions: float


def fit_temperatures(examples: Sequence[LayoutExample], settings: LayoutSettings) -> Temperatures:
    """Return the temperatures for a model of these examples, by five-fold cross-validation with one
    network a fold.
    """
    vocabulary = Vocabulary.of(examples)
    settings = replace(settings, networks=1)
    interacts: list[tuple[FloatArray, BoolArray]] = []
    actions: list[tuple[FloatArray, BoolArray]] = []
    for fold in range(FOLDS):
        seen = [example for number, example in enumerate(examples) if number % FOLDS != fold]
        with suppress(UserError):  # the only pairs that do nothing are in the images left out
            model = Fitter(seen, vocabulary, settings).fit()
            for unseen in examples[fold::FOLDS]:
                for probabilities, truth in _answers(model, unseen):
                    interacts.append((probabilities[:1], truth[:1]))
                    if truth[0]:
                        actions.append((probabilities[1:], truth[1:]))
    return Temperatures(_temperature(interacts), _temperature(actions))


def with_temperatures(model: LayoutModel, temperatures: Temperatures) -> LayoutModel:
    """Return a model whose logits are divided: its last layers have smaller weights."""
    weights = dict(model.weights)
    for name, values in model.weights.items():
        if f".{_LAST_LAYER}." in name:
            divisors = np.full(len(values), temperatures.actions, np.float32)
            divisors[0] = temperatures.interacts
            weights[name] = rounded((values.T / divisors).T)
    return LayoutModel(weights, model.classes, model.subject_classes, model.actions)


def _answers(model: LayoutModel, example: LayoutExample) -> Iterator[tuple[FloatArray, BoolArray]]:
    """Yield the probabilities and the truth of each candidate pair: `[1 + actions]`, first whether
    it interacts.
    """
    classes = example.layout.classes
    predicates = {(subject, thing): words for subject, words, thing in example.relations}
    columns = {action: column for column, action in enumerate(model.actions, start=1)}
    positions = range(len(classes))
    ordered = permutations(positions, 2)
    pairs = [pair for pair in ordered if model.is_subject(classes[pair[0]])]
    scores = model.score(example.layout, np.array(pairs, np.int64))
    for pair, interacts, actions in zip(pairs, scores.interacts, scores.actions, strict=True):
        truth = np.zeros(1 + len(model.actions), bool)
        if pair in predicates:
            truth[0] = True
            truth[[columns[word] for word in predicates[pair]]] = True
        yield np.append(interacts, actions), truth


def _temperature(answers: Sequence[tuple[FloatArray, BoolArray]]) -> float:
    """Return the temperature with the smallest log loss; 1 without answers."""
    if not answers:
        return 1.0
    probabilities = np.concatenate([probability for probability, _ in answers]).astype(np.float64)
    truth = np.concatenate([truth for _, truth in answers])
    clipped = np.clip(probabilities, _SMALLEST, 1 - _SMALLEST)
    logits = np.log(clipped / (1 - clipped))
    margins = np.where(truth, logits, -logits)
    losses = [np.logaddexp(0, -margins / temperature).mean() for temperature in _TEMPERATURES]
    return float(_TEMPERATURES[np.argmin(losses)])
