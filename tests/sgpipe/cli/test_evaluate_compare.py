"""`sgpipe eval … --compare`, and `sgpipe eval boxes`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from sgpipe.cli.main import app
from sgpipe.records import Box, Record, Relation
from tests.sgpipe.cli.test_evaluate import HOLD, RIDE, annotated, predicted
from tests.sgpipe.stats.runs import make_shards

IMAGES = 12


def name(number: int) -> str:
    return f"HICO_test2015_{number:08d}.jpg"


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments, "--resamples", "40"])


def hico_files(folder: Path) -> dict[str, str]:
    """The other predictions lack every third interaction."""
    verbs = [RIDE if number % 2 else HOLD for number in range(IMAGES)]
    contents = {
        "annotations": [annotated(name(number), verb) for number, verb in enumerate(verbs)],
        "new": [predicted(name(number), verb) for number, verb in enumerate(verbs)],
        "old": [predicted(name(number), verb if number % 3 else verb + 1) for number, verb in enumerate(verbs)],
    }
    paths = {key: folder / f"{key}.json" for key in contents}
    for key, path in paths.items():
        path.write_text(json.dumps(contents[key]))
    return {key: str(path) for key, path in paths.items()}


def test_hico_compared_as_table_and_json(tmp_path: Path) -> None:
    files = hico_files(tmp_path)
    options = ["hico", "--predictions", files["new"], "--annotations", files["annotations"], "--compare", files["old"]]
    printed = evaluate(*options)
    assert printed.exit_code == 0, printed.output
    assert f"Compared with {files['old']}: 12 images, 40 random halves" in " ".join(printed.output.split())
    result = json.loads(evaluate(*options, "--json").stdout)
    assert [files["old"] in note for note in result["notes"]] == [False, True]  # each side lists no classes
    content = result["comparison"]
    assert (content["other"], content["images"], content["resamples"], content["seed"]) == (files["old"], 12, 40, 0)
    measure = content["measures"]["mAP"]
    low, high = measure["difference_interval"]
    assert measure["value"] == 1
    assert measure["difference"] == pytest.approx(1 - measure["other"])
    assert 0 < low < measure["difference"] < high
    assert measure["shown"] is True
    assert content["measures"]["mAP rare"] == {
        **dict.fromkeys(("value", "other", "difference")),
        **{key: [None, None] for key in ("interval", "other_interval", "difference_interval")},
        "shown": False,
    }


def shards(folder: Path, correct: Callable[[int], bool], images: int = 12) -> Path:
    """Runs with one box and one relation in each image."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(images):
        right = correct(number)
        boxes = [Box("dog", 18, (5.0, 5.0, 20.0, 20.0)), Box("cup", 47, (40.0 if right else 60.0, 5.0, 20.0, 20.0))]
        confidence = float(np.float32(rng.random() / 2 + 0.5))
        boxes[0].score, boxes[1].score = 0.9, confidence
        relations = [Relation(0, 1, "near", confidence), Relation(1, 0, "on", 0.3)]
        image = Record(str(number), "coco", "val", f"{number}.jpg", 100, 50, boxes, relations=relations)
        records.append(image)
    return make_shards(folder, records)


@pytest.mark.parametrize(
    ("command", "measure"), [(["labels", "--pred"], "recall at 0.2"), (["boxes"], "AP50")], ids=["labels", "boxes"]
)
def test_runs_are_compared(tmp_path: Path, command: list[str], measure: str) -> None:
    truth, other = shards(tmp_path / "truth", lambda _: True), shards(tmp_path / "other", lambda number: number % 2 > 0)
    same = shards(tmp_path / "same", lambda _: True)
    options = [*command, str(same), "--truth", str(truth), "--compare"]
    result = evaluate(*options, str(other), "--json")
    assert result.exit_code == 0, result.output
    own = json.loads(result.stdout)["comparison"]["measures"][measure]
    low, high = own["difference_interval"]
    assert own["value"] == pytest.approx(1)
    assert 0 < low < own["difference"] < high < 1
    assert own["shown"] is True
    few = shards(tmp_path / "few", lambda _: True, 10)
    result = evaluate(*options, str(few))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "images on one side only" in result.stderr


def test_labels_of_resampled_images_beside_runs_in_which_they_are_repeated(tmp_path: Path) -> None:
    from sgpipe.evaluation.label_quality.comparison import label_quality, label_report
    from sgpipe.storage.run_folder import GroundTruth

    def quality(folder: Path, drawn: list[int]) -> Any:
        rng = np.random.default_rng(1)
        shift, confidence = rng.random(6) < 0.4, rng.random((6, 3))
        texts = rng.choice(["near", "on", "under"], (2, 6, 3))
        runs = []
        for side in range(2):
            records = []
            for place, image in enumerate(drawn):
                left = 60.0 if side and shift[image] else 40.0
                boxes = [Box("dog", 18, (5.0, 5.0, 20.0, 20.0)), Box("cup", 47, (left, 5.0, 20.0, 20.0))]
                relations = [
                    Relation(row % 2, 1 - row % 2, str(texts[side, image, row]), float(confidence[image, row]))
                    for row in range(3)
                ]
                records.append(Record(str(place), "coco", "val", f"{place}.jpg", 100, 50, boxes, relations=relations))
            runs.append(make_shards(folder / str(side), records))
        return label_report(label_quality(runs[1], GroundTruth(runs[0])))

    once = quality(tmp_path / "once", list(range(6)))
    rng = np.random.default_rng(2)
    for number in range(3):
        drawn = np.sort(rng.integers(0, 6, 6))
        expected = quality(tmp_path / str(number), drawn.tolist()).summary
        found = once.resampling.summary(np.bincount(drawn, minlength=6))
        assert found == pytest.approx(expected, nan_ok=True)
