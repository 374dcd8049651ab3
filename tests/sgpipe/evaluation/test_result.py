from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from rlip_model.evaluation.precision import area
from rlip_model.evaluation.scores import ClassScores
from sgpipe.evaluation.result import EvaluationResult, class_curve, precision_at


def scores(*classes: tuple[int, list[bool]]) -> ClassScores:
    """Scores of classes with a number of targets and the correctness of their detections."""
    targets, correct = (np.array([count for count, _ in classes]), np.concatenate([found for _, found in classes]))
    return ClassScores(
        classes=np.arange(10, 10 + len(classes)),
        targets=targets,
        detections=np.array([len(found) for _, found in classes]),
        true_positives=np.array([sum(found) for _, found in classes]),
        average_precision=np.zeros(len(classes)),
        scores=np.zeros(len(correct)),
        correct=correct.astype(bool),
    )


def test_precision_is_the_best_at_this_recall_or_a_larger_one() -> None:
    precision = precision_at(np.array([0.3, 0.6]), np.array([1.0, 0.5]))
    assert precision[0] == precision[30] == 1
    assert precision[31] == precision[60] == 0.5
    assert precision[61] == precision[100] == 0


def test_the_area_below_a_curve_is_the_average_precision() -> None:
    rng = np.random.default_rng(0)
    for count in (50, 200):
        hits = rng.random(3 * count) < 0.3
        hits &= np.cumsum(hits) <= count
        assert class_curve(scores((count, hits.tolist()))).mean() == pytest.approx(area(hits, count), abs=0.01)


def test_classes_are_equally_important_and_can_be_chosen() -> None:
    both = scores((1, [True]), (2, [False, True, False]))
    first, second = (class_curve(both, np.array([number])) for number in (10, 11))
    assert first.min() == 1
    assert second.max() == 0.5
    assert np.allclose(class_curve(both), (first + second) / 2)
    assert class_curve(both, np.array([7])).max() == 0


def test_the_plot_has_a_line_and_a_legend_entry_for_each_group_and_escapes_names(tmp_path: Path) -> None:
    curves = {"<script>": np.ones(101), "rare": np.zeros(101)}
    EvaluationResult("A & B", {}, {}, [], [], curves=curves).write_plot(tmp_path / "plot.svg")
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    name = root.tag.removesuffix("svg")
    lines = [line.get("points", "").split() for line in root.iter(f"{name}polyline")]
    assert [len(line) for line in lines] == [101, 101]
    top, bottom = (float(line[0].split(",")[1]) for line in lines)
    assert top < bottom
    texts = [text.text for text in root.iter(f"{name}text")]
    assert {"A & B", "recall", "precision", "<script>: 1.000", "rare: 0.000"} <= set(texts)
    assert list(tmp_path.iterdir()) == [tmp_path / "plot.svg"]
