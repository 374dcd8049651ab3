"""The runner of the experiments: its plan, what is left to do, and its report."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

from experiments.measures import of_pairs
from experiments.plan import CaptionerOfFew, Plan, load_plan
from experiments.report import ROOT, outcome, report
from experiments.results import Results
from experiments.run import Task, open_tasks
from rlip_model.training.validation import RelationScores
from tests.values import values_of

NEW = {"split": "train", "seed": 1, "images": 8}
FEWER = {"caption.samples": 2}
SETS = {
    "truth": {"drawn": {"split": "train", "images": 8}},
    "labels": {"drawn": NEW, "labels": {"set": FEWER}},
    "correct": {"drawn": NEW, "labels": {"keep": "true", "set": FEWER}},
}
TINY = {"steps": 2, "set": {"optimisation.batch": 2, "optimisation.warmup": 0}}
START = {"name": "start", "recipe": "detector", "data": [{"set": "truth"}], **TINY}
FIRST = {"name": "first", "recipe": "parseda", "init": "start", "data": [{"set": "labels"}], **TINY}
OTHER = {**FIRST, "data": [{"set": "truth"}]}
SECOND = {"name": "second", "recipe": "parseda", "data": [{"set": "truth", "limit": 4}], **TINY}
TAGGER = {
    "name": "first",
    "recipe": "tagger",
    "data": [{"set": "correct"}],
    "validate_every": 1,
    **TINY,
}


def plan(**changes):
    """A plan with one experiment, or with other values for some of its parts."""
    parts = {
        "measured_images": 4,
        "curve_images": 3,
        "sets": SETS,
        "networks": {"start": START},
        "experiments": {
            "one": {
                "title": "One question", "question": "Is it so?", "seeds": 2, "compared_sets": ["labels", "correct"],
                "arms": {"both": [FIRST, SECOND], "other": [OTHER], "tagger": [TAGGER]},
                "expected": [{"measure": "seen mAP", "stage": "first", "order": ["both", "other"]}],
            }
        },
    }  # fmt: skip
    return {**parts, **changes}


def arm_row(arm, seed, stage, **values):
    one = Plan.model_validate(plan())
    stages = one.experiments["one"].arms[arm]
    keys = dict(zip(values_of(stages, "name"), one.stage_keys(stages, seed), strict=True))
    return {"arm": arm, "seed": seed, "stage": stage, "key": keys[stage], **values}


def test_the_plan_of_the_project_is_valid_and_its_report_up_to_date():
    results = Results(load_plan())
    files = report(results.plan, {name: results.current(name) for name in results.plan.experiments})
    for path, text in files.items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, (
            f"run `python -m experiments.report` for {path}"
        )


def test_a_key_changes_with_everything_that_decides_the_weights():
    stages = Plan.model_validate(plan()).experiments["one"].arms["both"]
    first, second = Plan.model_validate(plan()).stage_keys(stages, 0)
    longer = Plan.model_validate(plan(networks={"start": {**START, "steps": 3}}))
    assert longer.stage_keys(stages, 0)[0] != first
    assert longer.stage_keys(stages, 0)[1] != second
    for name, used in (("labels", True), ("correct", False)):
        other = Plan.model_validate(plan(sets={**SETS, name: {**SETS[name], "labels": {}}}))
        assert (other.stage_keys(stages, 0) != [first, second]) == used
    assert Plan.model_validate(plan()).stage_keys(stages, 1)[0] != first


def test_every_seed_has_its_own_images_tagger_and_labels():
    seeded = {"truth": {**SETS["truth"], "own": True}}
    seeded["labels"] = {"drawn": NEW, "own": True, "labels": {"tagger": "own tagger"}}
    tagger = {**TAGGER, "data": [{"set": "truth"}]}
    networks = {"start": {**START, "data": [{"set": "shared"}]}, "own tagger": tagger}
    one = plan(sets={**SETS, **seeded, "shared": SETS["truth"]}, networks=networks)
    one = Plan.model_validate(one)
    assert [one.drawn("labels", seed).seed for seed in (0, 2)] == [1, 3]
    assert len({one.set_key("labels", seed) for seed in range(3)}) == 3
    assert one.shared_key("own tagger", 0) != one.shared_key("own tagger", 1)
    assert one.shared_key("start", 0) == one.shared_key("start", 1)  # it learns from shared images
    assert one.set_key("correct", 0) == one.set_key("correct", 1)
    judged = {"labels": {**seeded["labels"], "judged": {"ask": "uncertain", "answers": 5}}}
    asked = one.model_validate(
        {**one.model_dump(), "sets": {**SETS, **seeded, **judged, "shared": SETS["truth"]}}
    )
    assert asked.set_key("labels", 0) != one.set_key("labels", 0)
    few = CaptionerOfFew(of="truth", steps=3)  # learns from the annotated images of its seed alone
    assert (
        one.captioner(few, 2).model_dump().items()
        >= {
            "seed": 2,
            "train_images": 8,
            "steps": 3,
        }.items()
    )
    seeded["labels"]["labels"]["captioner"] = few.model_dump()
    alone = one.model_validate(
        {**one.model_dump(), "sets": {**SETS, **seeded, "shared": SETS["truth"]}}
    )
    assert (
        len({alone.set_key("labels", 0), alone.set_key("labels", 1), one.set_key("labels", 0)}) == 3
    )
    assert one.experiments["one"].label_sets(one) == [("labels", 0), ("labels", 1), ("correct", 0)]


def test_what_has_a_result_is_not_done_again(tmp_path):
    one = Plan.model_validate(plan())
    results = Results(one, tmp_path)
    every = open_tasks(results, ["one"])
    assert every == [
        Task("one", "labels", ("labels", "0")),
        Task("one", "labels", ("correct", "0")),
        *(Task("one", "arm", (arm, seed)) for seed in "01" for arm in ("both", "other", "tagger")),
    ]
    results.append("one", {"labels": "labels", "key": one.set_key("labels"), "measures": {}})
    results.append("one", arm_row("both", 0, "first", measures={}))
    # its second stage is missing
    assert Task("one", "arm", ("both", "0")) in open_tasks(results, ["one"])
    results.append("one", arm_row("both", 0, "second", measures={}))
    results.append("one", arm_row("tagger", 1, "first", diverged="the loss is not finite"))
    for seed in (0, 1):
        results.append("one", arm_row("other", seed, "first", measures={}))
    left = [("labels", ("correct", "0")), ("arm", ("tagger", "0")), ("arm", ("both", "1"))]
    assert open_tasks(results, ["one"]) == [Task("one", *task) for task in left]
    for stage in ("first", "second"):
        results.append("one", arm_row("both", 1, stage, measures={}))
    item = ("first", "seen mAP", "both", "other")  # both arms are complete: they can be compared
    assert open_tasks(results, ["one"])[2:] == [Task("one", "comparison", (*item, "2"))]
    key = results.comparison_key(one.experiments["one"], item)
    row = {
        "compared": ["both", "other"],
        "stage": "first",
        "measure": "seen mAP",
        "interval": [0, 1],
    }
    results.append("one", {**row, "key": "of other networks"})
    assert len(open_tasks(results, ["one"])) == 3
    results.append("one", {**row, "key": key})
    assert len(open_tasks(results, ["one"])) == 2
    changed = Plan.model_validate(plan(networks={"start": {**START, "steps": 3}}))
    assert Task("one", "arm", ("both", "0")) in open_tasks(Results(changed, tmp_path), ["one"])


@pytest.mark.parametrize(
    ("differences", "images", "expected"),
    [
        ([0.1, 0.12, 0.11], [0.05, 0.2], "shown"), ([0.1, 0.12, 0.11], [-0.01, 0.2], "open"),
        ([0.1, -0.3, 0.4], [0.05, 0.2], "open"), ([-0.1, -0.12, -0.11], [-0.2, -0.05], "**the opposite**"),
        ([0.1], [0.05, 0.2], "incomplete"), ([], [0.05, 0.2], "not measured"),
        ([0.1, 0.12, 0.11], None, "incomplete"),
    ],
)  # fmt: skip
def test_a_difference_is_shown_if_both_intervals_exclude_0(differences, images, expected):
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "stage": "first",
            "measures": {"mAP": 0.5 + (value if arm == "a" else 0)},
        }
        for seed, value in enumerate(differences)
        for arm in "ab"
    ]
    if images:
        row = {"compared": ["a", "b"], "stage": "first", "measure": "mAP", "interval": images}
        rows.append({**row, "method": "half samples"})
    assert outcome(rows, "first", "mAP", "a", "b") == expected


@pytest.mark.soak
def test_experiments_run_to_the_end_and_once(tmp_path):
    """Sets, labels, a detector, two stages and a curve, each tiny, in processes of their own."""
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan()))
    command = [sys.executable, "-m", "experiments.run", "--plan", str(tmp_path / "plan.yaml")]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    logs = "".join(path.read_text() for path in (tmp_path / "work" / "logs").iterdir())
    assert done.stdout.splitlines()[-1] == "all done", done.stdout + done.stderr + logs
    rows = list(map(json.loads, (tmp_path / "results" / "one.jsonl").read_text().splitlines()))
    assert len(rows) == 2 + 2 * 4 + 1
    labels = {row["labels"]: row["measures"] for row in rows if "labels" in row}
    assert labels["correct"]["precision"] == 1.0
    curve, *_ = [row["curve"] for row in rows if row.get("arm") == "tagger"]
    assert [step for step, _ in curve] == [1, 2]
    assert all(
        {"seen mAP", "unseen mAP"} == row["measures"].keys()
        for row in rows
        if row.get("arm") == "both"
    )
    second_run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert second_run.stdout.splitlines()[-1] == "all done"
    assert (tmp_path / "results" / "one.jsonl").read_text().count("\n") == len(rows)


def test_average_precision_of_resampled_images_is_that_of_the_repeated_images():
    rng = np.random.default_rng(3)
    scores = RelationScores()
    for size in (4, 0, 7, 3):
        scores.confidences.append(np.sort(rng.random(size))[::-1])
        scores.true_positives.append(rng.random(size) < 0.5)
        scores.targets.append(int(scores.true_positives[-1].sum()) + 1)
    counts = np.array([2, 1, 0, 3])
    repeated = RelationScores()
    for image, times in enumerate(counts):
        for _ in range(times):
            repeated.confidences.append(scores.confidences[image])
            repeated.true_positives.append(scores.true_positives[image])
            repeated.targets.append(scores.targets[image])
    resampled = of_pairs(scores, "seen AP")
    assert len(resampled.images) == 4
    assert resampled.summary(counts)["seen AP"] == pytest.approx(repeated.measures()["ap"])
    assert resampled.summary(np.ones(4, dtype=int))["seen AP"] == pytest.approx(
        scores.measures()["ap"]
    )
