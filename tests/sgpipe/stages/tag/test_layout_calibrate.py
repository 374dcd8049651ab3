"""Layout models of few images are no surer than cross-validation lets them be."""

import random

import numpy as np
import pytest

from sgpipe.stages.tag.layout.calibrate import Temperatures, fit_temperatures, with_temperatures
from sgpipe.stages.tag.layout.fit import LayoutExample, LayoutSettings, fit_layout
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.stages.tag.layout.scene import ImageLayout

SETTINGS = LayoutSettings(networks=1, epochs=80, min_steps=0, width=16)
PAIR = np.array([[0, 1]])


def by_chance(seed: int, images: int) -> list[LayoutExample]:
    """A person holds the cup in half of the images, whatever the boxes are."""
    chance = random.Random(seed)
    examples = []
    for _ in range(images):
        left = chance.uniform(0, 150)
        boxes = np.array([[50, 10, 90, 90], [left, 40, left + 8, 48]], np.float32)
        layout = ImageLayout(boxes, ["person", "cup"], 200, 100)
        relations = [(0, ["holding"], 1)] if chance.random() < 0.5 else []
        examples.append(LayoutExample(layout, relations))
    return examples


def log_loss(model: LayoutModel, examples: list[LayoutExample]) -> float:
    losses = []
    for example in examples:
        [probability] = model.score(example.layout, PAIR).interacts
        losses.append(-np.log(probability if example.relations else 1 - probability))
    return float(np.mean(losses))


@pytest.mark.slow
def test_a_model_that_learned_chance_by_heart_becomes_less_sure() -> None:
    examples = by_chance(0, 40)
    model = fit_layout(examples, SETTINGS)
    temperatures = fit_temperatures(examples, SETTINGS)
    calibrated = with_temperatures(model, temperatures)
    new = by_chance(1, 200)
    assert temperatures.interacts > 1.5
    assert log_loss(model, new) > log_loss(calibrated, new) + 0.1
    assert log_loss(calibrated, new) == pytest.approx(np.log(2), abs=0.1)


def test_logits_are_divided_and_what_is_saved_gives_the_same(tmp_path) -> None:
    examples = by_chance(0, 40)
    model = fit_layout(examples, SETTINGS)
    calibrated = with_temperatures(model, Temperatures(interacts=2, actions=4))
    calibrated.save(tmp_path)
    for example in examples[:5]:
        before = model.score(example.layout, PAIR)
        after = calibrated.score(example.layout, PAIR)
        loaded = LayoutModel.load(tmp_path).score(example.layout, PAIR)
        for name, divisor in (("interacts", 2), ("actions", 4)):
            logits, divided = (
                np.log(value / (1 - value))
                for value in (getattr(scores, name).astype(float) for scores in (before, after))
            )
            assert divided == pytest.approx(logits / divisor, abs=0.02)
            assert getattr(loaded, name).tolist() == getattr(after, name).tolist()
