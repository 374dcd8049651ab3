import json
import shutil
from contextlib import suppress
from itertools import count

import numpy as np
import pyarrow.parquet as pq
import pytest

from sgpipe.calibration import choose_threshold, load_calibration, stored
from sgpipe.errors import UserError
from sgpipe.stats.calibrate import calibrate
from sgpipe.stats.precision import JudgedRelations
from sgpipe.storage.index import open_run
from tests.sgpipe.stats.runs import invoke, judge, make_shards, scene

WORDS = ("near", "holding", "rare")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run whose confidences are too low, and its ground truth."""
    folder = tmp_path_factory.mktemp("calibrate")
    rng = np.random.default_rng(0)
    predicted = []
    true = []
    for n in range(900):
        word = 2 if n % 150 == 0 else n % 2
        confidence = float(np.float32(rng.uniform(0.02, 0.98)))
        odds = 2 * np.log(confidence / (1 - confidence)) + 1
        correct = rng.random() < 1 / (1 + np.exp(-odds))
        predicted.append(scene(str(n), [(0, WORDS[word], 1, confidence)]))
        true.append(scene(str(n), [(0, WORDS[word] if correct else "under", 1)]))
    return make_shards(folder / "run", predicted), make_shards(folder / "truth", true)


@pytest.fixture(scope="module")
def calibrated(runs, tmp_path_factory):
    """The report as JSON, and the file."""
    file = tmp_path_factory.mktemp("calibration") / "calibration.json"
    return (
        json.loads(
            invoke("calibrate", runs[0], "--truth", runs[1], "--out", file, "--json").stdout
        ),
        file,
    )


def test_half_of_the_images_judge_the_other_half(calibrated):
    report, file = calibrated
    before, after, exact, *_ = report["summary"].values()
    assert 2 * after < before
    assert after < 0.06
    assert 0.01 < exact < 0.06
    assert all(
        row["precision"] >= row["target"]
        for row in report["kept_for_a_target_precision"]
        if row["kept"]
    )
    calibration = load_calibration(file)
    assert 400 < report["counts"]["judged held out"] < 500
    assert 1.7 < calibration.slope < 2.3
    assert 0.7 < calibration.offset < 1.3
    assert report["counts"]["judged"] == 900


def test_a_probability_is_a_minimum_confidence(calibrated):
    calibration = load_calibration(calibrated[1])
    minimum = calibration.threshold(0.8)
    assert calibration.probabilities(minimum) == pytest.approx(0.8, abs=1e-4)
    assert calibration.threshold(0) == 0
    assert calibration.threshold(1) == np.inf
    # nothing is known below it
    assert calibration.threshold(1e-9) == pytest.approx(calibration.lowest)
    assert stored(0.7) <= np.float32(0.7)
    unbounded = calibration.model_copy(update={"lowest": 0.0})
    lowest = float(unbounded.probabilities(1e-7))
    assert unbounded.threshold(lowest / 2) == 0 < unbounded.threshold(lowest * 2)
    # the minimum confidence has log odds of some 100,000
    flat = calibration.model_copy(update={"slope": 1e-5})
    assert (flat.threshold(0.99), flat.threshold(0.01)) == (np.inf, np.float32(flat.lowest))


def test_a_precision_chooses_the_lowest_probability_with_it(calibrated):
    calibration = load_calibration(calibrated[1])
    chosen = calibration.probability_for(0.9)
    above = [shown for probability, shown, _ in calibration.levels if probability >= chosen]
    below = [shown for probability, shown, _ in calibration.levels if probability < chosen]
    assert above[-1] >= 0.9 > below[0]
    everything = calibration.threshold(calibration.probability_for(0.01))
    assert everything == pytest.approx(calibration.lowest)  # but nothing of which nothing is known
    assert choose_threshold(calibrated[1], 0.5, 0.9) == calibration.threshold(chosen)
    assert choose_threshold(calibrated[1], 0.5) == calibration.threshold(0.5)
    assert choose_threshold(None, 0.5) == 0.5
    with pytest.raises(UserError, match="by 900 judged relations, no threshold has this"):
        calibration.probability_for(0.99999)
    with pytest.raises(UserError, match="precision needs a calibration"):
        choose_threshold(None, 0.5, 0.9)
    for wrong in (-1, 1.5, float("nan")):
        with pytest.raises(UserError, match="expected a number from 0 to 1"):
            calibration.probability_for(wrong)


def judgements(confidence, correct, images=None) -> JudgedRelations:
    names = np.array(images or list(map(str, range(len(confidence)))), object)
    return JudgedRelations(
        np.array(confidence), np.array(correct, bool), names, np.ones(len(confidence))
    )


def test_a_precision_is_kept_although_few_relations_are_judged(runs):
    """A threshold of the expected precision missed it in 19 of 50 samples of 200 judgements."""
    rng = np.random.default_rng(0)
    population = rng.uniform(0.02, 0.98, 20_000)
    true = population**0.7
    missed = chosen = 0
    for _ in range(50):
        at = rng.choice(len(population), 200, replace=False)
        calibration, _ = calibrate(runs[0], judgements(population[at], rng.random(200) < true[at]))
        with suppress(UserError):
            confident = population >= calibration.threshold(calibration.probability_for(0.75))
            missed += true[confident].mean() < 0.75
            chosen += 1
    assert chosen > 30
    assert missed <= 3


@pytest.mark.parametrize(
    ("confidence", "correct", "images", "message"),
    [
        (
            [0.5] * 49,
            [1, 0] * 24 + [1],
            None,
            "has 49 judged relations; a calibration needs at least 50",
        ),
        ([0.5] * 60, [1] * 60, None, "correct and incorrect ones in each half"),
        ([0.5] * 60, [1, 0] * 30, ["a"] * 60, "correct and incorrect ones in each half"),
        ([0.5] * 59 + [float("nan")], [1, 0] * 30, None, "has a confidence of nan"),
        ([0.2, 0.8] * 30, [1, 0] * 30, None, "not more often correct"),
    ],
)
def test_judgements_that_teach_nothing_are_refused(runs, confidence, correct, images, message):
    with pytest.raises(UserError, match=message):
        calibrate(runs[0], judgements(confidence, correct, images))


def test_judgements_of_people(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    number = count(1)
    rng = np.random.default_rng(0)
    out = tmp_path / "calibration.json"

    def decide(question):
        return (
            "unsure"
            if next(number) % 25 == 7
            else "right"
            if rng.random() < question.confidence
            else "wrong"
        )

    judge(run, 100, decide)
    options = ["calibrate", run, "--judgements", "own", "--out", out]
    invoke(*options)
    calibration = load_calibration(out)
    assert (calibration.judged, calibration.judged_by) == (100, "people")
    assert calibration.tagger == {"run": "drawn"}
    invoke(*options, "--truth", runs[1], code=2)
    invoke(*options[:2], code=2)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2}', '{"slope": NaN}', "[" * 100_000, "\udc00"]
)
def test_a_foreign_file_is_refused(tmp_path, text):
    file = tmp_path / "calibration.json"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="calibration"):
        load_calibration(file)


def test_a_calibration_fits_its_own_tagger(calibrated):
    calibration = load_calibration(calibrated[1])
    calibration.check_run({"fingerprint": "drawn"}, "here")
    with pytest.raises(
        UserError, match="does not fit there, whose confidences are of another tagger"
    ):
        calibration.check_run({"fingerprint": "other"}, "there")
    tagger = {
        "tagger": "sha256:1",
        "short_side": 96,
        "long_side": 144,
        "group_size": 100,
        "threshold": 0.1,
        "chunk": 4,
    }
    pair = {"candidates": "captions", "restrict": "pair"}
    of_run = {"identity": {"scored": 1}, "origin": [{"tag": tagger, "pair": pair}]}
    other = calibration.model_copy(update={"tagger": tagger | pair})
    del other.tagger["threshold"], other.tagger["chunk"]
    other.check_run(of_run, "here")
    with pytest.raises(UserError, match="short_side: 97 in the calibration, 96 now"):
        other.model_copy(update={"tagger": other.tagger | {"short_side": 97}}).check_run(
            of_run, "here"
        )
    for changed in ({"tag": 5}, {"tag": {}, "pair": 5}, 5):
        with pytest.raises(UserError, match="does not fit there"):
            other.check_run({"identity": changed}, "there")


def test_the_thresholds_of_stats_are_probabilities(runs, calibrated):
    calibration = load_calibration(calibrated[1])
    options = [
        "stats",
        runs[0],
        "--truth",
        runs[1],
        "--calibration",
        calibrated[1],
        "--precision",
        "0.9",
    ]
    audit = json.loads(invoke(*options, "--json").stdout)
    chosen = calibration.probability_for(0.9)
    assert audit["ground_truth"]["threshold"] == chosen
    assert audit["ground_truth"]["calibration_error"] < 0.04
    assert audit["ground_truth"]["precision"]["value"] == pytest.approx(0.9, abs=0.05)
    with open_run(runs[0]) as database:
        raw = database.rows("select confidence from relations")
    confident = sum(confidence >= calibration.threshold(0.6) for (confidence,) in raw)
    assert (
        next(level for level in audit["thresholds"] if level["threshold"] == 0.6)["relations"]
        == confident
    )
    assert any(
        f"relations of probability {chosen:.2f} or more" in finding["text"]
        for finding in audit["findings"]
    )
    assert (
        "threshold and precision both choose"
        in invoke(*options, "--threshold", "0.5", code=2).output
    )


def test_runs_of_other_taggers_are_refused(calibrated, tmp_path):
    other = make_shards(
        tmp_path / "other", [scene("0", [(0, "near", 1, 0.5), (0, "on", 1)])], fingerprint="other"
    )
    for command in (["stats"], ["export", "--to", "vg", "--out", tmp_path / "out"]):
        output = invoke(*command, other, "--calibration", calibrated[1], code=2).output
        assert "whose confidences are of another tagger" in output
    human = make_shards(tmp_path / "human", [scene("0", [(0, "on", 1)])])
    invoke("stats", human, "--calibration", calibrated[1])


def test_an_export_keeps_what_is_probable_enough(runs, calibrated, tmp_path):
    calibration = load_calibration(calibrated[1])
    with open_run(runs[0]) as database:
        rows = database.rows("select predicate::varchar, confidence from relations")
    minimum = {"--precision=0.9": calibration.probability_for(0.9), "--threshold=0.8": 0.8}
    for option, probability in minimum.items():
        out = tmp_path / option
        options = ["--to", "hf", "--out", out, "--calibration", calibrated[1], option, "--json"]
        result = invoke("export", runs[0], *options)
        confident = sum(confidence >= calibration.threshold(probability) for _, confidence in rows)
        assert json.loads(result.stdout)["relations"] == confident
        assert "Relations of probability below" in (out / "README.md").read_text(encoding="utf-8")
    parts = pq.read_table(out / "data")["relations"].to_pylist()
    stored = {relation["confidence"] for row in parts for relation in row}
    assert stored <= {confidence for _, confidence in rows}  # the tagger's own
