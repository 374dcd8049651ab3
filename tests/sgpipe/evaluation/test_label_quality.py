"""Label quality: numbers worked out by hand, and random runs against a plain reading of the
definitions.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from sgpipe.errors import UserError
from sgpipe.evaluation.graphs import NO_MATCH, Vocabulary, best_pairs, class_meanings
from sgpipe.evaluation.label_quality import LabelQuality, label_quality, label_report
from sgpipe.records import Box, Pair, Record, Relation
from sgpipe.stages.matching import normalise_predicate
from sgpipe.storage.run_folder import GroundTruth
from tests.sgpipe.stats.runs import invoke, make_shards
from tests.values import values_of

MAN = (2, 2, 8, 8)
HORSE = (12, 4, 8, 10)
HORSE_BEHIND = (12.5, 4, 8, 10)
OBJECTS = (("person", MAN), ("horse", HORSE), ("horse", HORSE_BEHIND))
Predicted = tuple[int, int, str] | tuple[int, int, str, float]


def record(
    relations: Sequence[Predicted],
    image_id: str = "1",
    objects: Sequence[tuple[str, Any]] = OBJECTS,
    **changes: object,
) -> Record:
    values = {
        "dataset": "coco",
        "split": "val",
        "file_name": f"{image_id}.jpg",
        "width": 24,
        "height": 16,
        **changes,
    }
    boxes = [Box(name, 1, bbox) for name, bbox in objects]
    return Record(
        image_id, objects=boxes, relations=[Relation(*item) for item in relations], **values
    )


def compared(
    folder: Path,
    pred: Sequence[Record],
    truth: Sequence[Record],
    image_data: Path | None = None,
    **options: object,
) -> LabelQuality:
    ground_truth = GroundTruth(make_shards(folder / "truth", truth, rows=3), image_data=image_data)
    return label_quality(make_shards(folder / "pred", pred, rows=3), ground_truth, **options)


def test_precision_recall_and_curve_by_hand(tmp_path: Path) -> None:
    predicted = [
        (0, 1, "riding", 0.9),
        (0, 2, "riding", 0.6),
        (1, 2, "near", 0.3),
        (0, 1, "on", 0.1),
    ]
    result = compared(
        tmp_path, [record(predicted)], [record([(0, 1, "riding"), (1, 2, "near"), (1, 0, "under")])]
    )
    assert (result.at_threshold.precision, result.at_threshold.recall) == (2 / 3, 2 / 3)
    assert (result.at(0).precision, result.at(0).recall) == (2 / 4, 2 / 3)
    assert (result.at(0.9).precision, result.at(0.9).recall) == (1, 1 / 3)
    assert result.average_precision == pytest.approx((1 + 2 / 3) / 3)
    # riding: its one is result first
    assert result.mean_average_precision == pytest.approx((1 + 1 + 0) / 3)


def test_equal_boxes_find_each_other_though_others_overlap(tmp_path: Path) -> None:
    herd = [("horse", (4 + step / 8, 4, 8, 8)) for step in range(6)] + [("horse", (4, 4, 8, 8))]
    predicted = [(first, (first + 3) % 7, "near", 0.5) for first in range(7)]
    truth = [
        (*(6 - end for end in pair), "near")
        for *pair, _, _ in predicted
        if 0 not in pair and 6 not in pair
    ]
    result = compared(
        tmp_path, [record(predicted, objects=herd)], [record(truth, objects=herd[::-1])]
    )
    assert result.at_threshold.recall == 1
    assert result.counts["objects matched"] == 7


def test_boxes_in_images_of_another_size_and_order(tmp_path: Path) -> None:
    large = [
        ("horse", tuple(2 * side + 1 for side in HORSE)),
        ("person", tuple(2 * side for side in MAN)),
    ]
    truth = record([(1, 0, "riding")], objects=large, width=48, height=32)
    pred = record([(0, 1, "riding", 0.9)], objects=OBJECTS[:2])
    assert compared(tmp_path, [pred], [truth]).at_threshold.recall == 1


def test_candidates_are_all_pairs_with_all_their_predicates(tmp_path: Path) -> None:
    pred = record([])
    pred.pairs = [Pair(0, 1, ["riding", "on"]), Pair(0, 2, ["riding"])]
    result = compared(
        tmp_path, [pred], [record([(0, 1, "riding")])], source="candidates", threshold=1
    )
    assert (
        result.at_threshold.predicted,
        result.at_threshold.precision,
        result.at_threshold.recall,
    ) == (3, 1 / 3, 1)
    assert result.average_precision == pytest.approx(1 / 3)


def test_images_that_cannot_be_compared_are_counted(tmp_path: Path) -> None:
    failed = record([], "3")
    failed_truth = record([], "4")
    for one in (failed, failed_truth):
        one.objects = []
        one.fail("caption", "no such file")
    predicted = [(0, 1, "riding", 0.9)]
    pred = [record(predicted, number) for number in "1245"] + [failed]
    truth = [record([(0, 1, "riding")], number) for number in "13677"] + [failed_truth]
    result = compared(tmp_path, pred, truth)
    assert result.at_threshold.targets == result.at_threshold.matched == 1
    expected = {
        "images": 5,
        "images compared": 1,
        "images without ground truth": 3,
        "images failed": 1,
    }
    expected |= {"relations not compared": 3, "ground truth images not in run": 2}
    assert expected.items() <= result.counts.items()
    assert any(
        note.startswith("3 images of the run without ground truth")
        for note in label_report(result).notes
    )


def test_datasets_that_name_images_differently_share_file_names(tmp_path: Path) -> None:
    pred = [record([(0, 1, "riding", 0.9)], "139", file_name="val2017/000000000139.jpg")]
    # another image: its own number 139
    genome = record([(1, 0, "under")], "139", dataset="visual_genome")
    vcoco = record(
        [(0, 1, "riding")], "x", dataset="vcoco", file_name="COCO_val2014_000000000139.jpg"
    )
    result = compared(tmp_path, pred, [genome, vcoco])
    assert (result.counts["images compared"], result.at_threshold.recall) == (1, 1)


def test_image_data_tells_which_images_of_visual_genome_are_of_coco(tmp_path: Path) -> None:
    sizes = {"width": 24, "height": 16}
    items = [{"image_id": 1, "coco_id": None, **sizes}, {"image_id": 2, "coco_id": 1, **sizes}]
    path = tmp_path / "image_data.json"
    path.write_text(json.dumps(items))
    texts = {"1": "on", "2": "riding"}
    genome = [
        record([(0, 1, text)], number, dataset="visual_genome") for number, text in texts.items()
    ]
    result = compared(tmp_path, [record([(0, 1, "riding", 0.9)])], genome, image_data=path)
    assert (result.counts["images compared"], result.at_threshold.recall) == (1, 1)


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path) -> None:
    records = {
        "truth": record([(0, 1, "riding")]),
        "other": record([(0, 1, "riding")], "2"),
        "nothing": record([]),
    }
    records |= {"failed": record([]), "unsure": record([(0, 1, "riding", float("nan"))])}
    records["odd"] = record([], objects=[("dog", (6, 4, -5, 4))])
    records["failed"].fail("tag", "broken")
    for name in ("empty", *records):
        make_shards(tmp_path / name, [records[name]] if name in records else [])
    for message, pred, true in (
        ("no image in common: one has '2', the other '1'", "other", "truth"), ("no such folder", "missing", "truth"),
        ("contains no relations to compare with", "truth", "nothing"),
        ("contains only failed images", "failed", "truth"), ("contains no images", "empty", "truth"),
        ("empty contains no relations to compare with", "truth", "empty"),
        ("image 1: nan is not a confidence from 0 to 1", "unsure", "truth"),
        (r"image 1: \[6.0, 4.0, -5.0, 4.0\] is not x, y, width, height", "odd", "truth"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message) as refused:
            label_quality(tmp_path / pred, GroundTruth(tmp_path / true))
        assert "\n" not in str(refused.value)
    truth = tmp_path / "truth"
    with pytest.raises(UserError, match="stands for both"):
        label_quality(truth, GroundTruth(truth), synonyms={"on": ["upon"], "above": ["upon"]})


def test_the_command_writes_tables_json_csv_and_a_plot(tmp_path: Path) -> None:
    predicted = [(0, 1, "riding", 0.9), (0, 1, "on <top>", 0.8), (1, 0, "by", 0.4)]
    pred = make_shards(tmp_path / "pred", [record(predicted)])
    truth = make_shards(tmp_path / "truth", [record([(0, 1, "rides"), (1, 0, "beside")])])
    (tmp_path / "synonyms.yaml").write_text("next to: [beside, by]")
    out = [tmp_path / name for name in ("out.json", "out.csv", "out.svg")]
    options = [
        "--json-file",
        out[0],
        "--csv",
        out[1],
        "--plot",
        out[2],
        "--synonyms",
        tmp_path / "synonyms.yaml",
    ]
    assert (
        "by frequency"
        in invoke("eval", "labels", "--pred", pred, "--truth", truth, *options).output
    )
    content = json.loads(out[0].read_text())
    assert content["summary"]["recall at 0.2"] == 1
    assert values_of(content["by_threshold"], "threshold")[:2] == ["0", "0.05"]
    assert content["counts"]["images compared"] == 1
    rows = dict(values_of(csv.DictReader(out[1].open()), "predicate", "true_positives"))
    assert rows == {"rides": "1", "next to": "1", "on <top>": "0"}
    assert ElementTree.fromstring(out[2].read_text()).tag.endswith("svg")


def test_random_runs_agree_with_the_definitions(tmp_path: Path) -> None:
    rng = random.Random(5)
    names = ("person", "dog", "cup")
    predicates = ("riding", "rides", "on", "near", "under")
    images = []
    for number in range(40):
        objects = [
            (
                rng.choice(names),
                (rng.randrange(12), rng.randrange(8), 4 + rng.randrange(6), 4 + rng.randrange(4)),
            )
            for _ in range(rng.randint(2, 6))
        ]
        triplets = [
            (rng.randrange(len(objects)), rng.randrange(len(objects)), p)
            for p in predicates
            for _ in range(4)
        ]
        predicted = [(*rng.choice(triplets), rng.choice([0.1, 0.2, 0.4, 0.8])) for _ in range(8)]
        images.append((objects, predicted, rng.sample(triplets, 6), str(number)))
    parts = {"pred": [p for _, p, _, _ in images], "truth": [t for _, _, t, _ in images]}
    parts["targets"] = [true[:3] for true in parts["truth"]]
    pred, truth, targets = (
        make_shards(
            tmp_path / part,
            [record(r, image[3], image[0]) for r, image in zip(relations, images, strict=True)],
            rows=3,
        )
        for part, relations in parts.items()
    )
    result = label_quality(pred, GroundTruth(truth, targets))
    best: dict[tuple[Any, ...], float] = {}
    for _, predicted, _, name in images:
        for subject, object_, text, confidence in predicted:
            key = (name, subject, object_, lemma(text))
            best[key] = max(best.get(key, 0), confidence)
    correct = {(name, s, o, lemma(text)) for _, _, true, name in images for s, o, text in true}
    asked = {(name, s, o, lemma(text)) for _, _, true, name in images for s, o, text in true[:3]}
    confident = {key for key, confidence in best.items() if confidence >= 0.2}
    assert result.at_threshold.precision == len(confident & correct) / len(confident)
    assert result.at_threshold.recall == len(confident & asked) / len(asked)
    assert result.average_precision == pytest.approx(plain_average_precision(best, correct, asked))
    for row in result.predicates:
        has_predicate = partial(is_of, lemma(row.predicate))
        expected = plain_average_precision(
            {key: best[key] for key in filter(has_predicate, best)},
            set(filter(has_predicate, correct)),
            set(filter(has_predicate, asked)),
        )
        assert row.average_precision == pytest.approx(expected)


def is_of(predicate: str, key: tuple[Any, ...]) -> bool:
    return key[3] == predicate


def lemma(text: str) -> str:
    return "riding" if text == "rides" else text


def plain_average_precision(best: Mapping[Any, float], correct: set[Any], asked: set[Any]) -> float:
    ranked = {
        key: confidence for key, confidence in best.items() if key in asked or key not in correct
    }
    points = [(0.0, 1.0)]
    for threshold in sorted(set(ranked.values()), reverse=True):
        predicted = {key for key, confidence in ranked.items() if confidence >= threshold}
        points.append(
            (len(predicted & asked) / len(asked), len(predicted & asked) / len(predicted))
        )
    steps = enumerate(pairwise(recall for recall, _ in points), 1)
    return sum(
        (after - before) * max(precision for _, precision in points[at:])
        for at, (before, after) in steps
    )


def test_the_best_pair_first_then_the_best_of_the_rest() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        first = rng.integers(0, 8, 25)
        second = rng.integers(0, 6, 25)
        quality = rng.integers(0, 5, 25) / 4  # with many equal ones
        expected = np.full(8, NO_MATCH)
        taken = set()
        for _, left, right in sorted(zip(-quality, first, second, strict=True)):
            if expected[left] == NO_MATCH and right not in taken:
                expected[left] = right
                taken.add(right)
        order = rng.permutation(25)
        assert (best_pairs(first[order], second[order], quality[order], 8) == expected).all()


def test_a_name_that_is_a_class_means_only_itself() -> None:
    words = Vocabulary(normalise_predicate)
    table = class_meanings(words, ["Person", "car", "truck"])
    meanings = {
        name: {words.names[number] for number in table(words.number(name))}
        for name in ("car", "van")
    }
    assert meanings == {"car": {"car"}, "van": {"van", "car", "truck"}}
    other = class_meanings(words, ["person", "hovercraft"])
    assert [words.names[number] for number in other(words.number("man"))] == ["man"]
