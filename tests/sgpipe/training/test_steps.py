"""Trainings by steps: where they end, when they validate, and that they resume and go on exactly."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlip_model.losses import DetectionCriterion
from rlip_model.settings import MatchingCosts
from sgpipe.errors import UserError
from sgpipe.training.job import make_objective
from sgpipe.training.metrics import read_metrics
from sgpipe.training.recipe import load_train_recipe
from sgpipe.training.run import train
from tests.rlip_model.training.worlds import network
from tests.sgpipe.training.test_run import KilledError, killed_at
from tests.sgpipe.training.trainings import QUIET, curve, different, recipe, steps, training, weights

__all__ = ["killed_at"]


def by_steps(run: Path, **changes: object) -> dict[str, object]:
    """Five steps, in the middle of the second epoch of three, validated every two steps."""
    val = [{"shards": str(run)}]
    return {"optimisation__steps": 5, "output__validate_every_steps": 2, "data__val": val, **changes}


@pytest.fixture(scope="module")
def whole(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of five steps without interruption; tests must not change it."""
    out = tmp_path_factory.mktemp("steps") / "out"
    training(drawn_run, out, **by_steps(drawn_run))
    return out


def test_a_training_ends_after_its_steps_and_its_end_is_validated_and_saved(drawn_run: Path, whole: Path) -> None:
    assert [(row["epoch"], row["step"], row["steps"]) for row in steps(whole)] == [
        *((1, step, 5) for step in (1, 2, 3)),
        *((2, step, 5) for step in (4, 5)),
    ]
    validations = [(row["epoch"], row["step"]) for row in read_metrics(whole) if row["event"] == "validation"]
    assert validations == [(1, 2), (2, 4), (2, 5)]
    assert (whole / "last").resolve().name == "step-00000005"
    rates = [row["lr_rest"] for row in steps(whole)]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.1 * rates[0]  # cosine ends with the last step, not with the epochs


@pytest.mark.parametrize("kill", [3, 5])
def test_killed_at_any_step_it_resumes_exactly(
    drawn_run: Path, whole: Path, tmp_path: Path, killed_at: Callable[[int], None], kill: int
) -> None:
    """Killed at 3 it resumes from the validation at step 2, in the middle of an epoch; at 5 from that at 4."""
    killed_at(kill)
    with pytest.raises(KilledError):
        training(drawn_run, tmp_path / "out", **by_steps(drawn_run))
    killed_at(0)
    training(drawn_run, tmp_path / "out", **by_steps(drawn_run))
    assert not different(weights(tmp_path / "out"), weights(whole))
    assert curve(tmp_path / "out") == curve(whole)


def test_with_the_step_schedule_more_steps_or_epochs_continue_a_training(drawn_run: Path, tmp_path: Path) -> None:
    schedule = {"optimisation__schedule": "step"}
    training(drawn_run, tmp_path / "whole", **schedule, optimisation__epochs=2)
    training(drawn_run, tmp_path / "out", **schedule, optimisation__steps=2)
    training(drawn_run, tmp_path / "out", **schedule, optimisation__steps=4)
    summary = training(drawn_run, tmp_path / "out", **schedule, optimisation__epochs=2)
    assert (summary.epochs, summary.steps) == (2, 6)
    assert not different(weights(tmp_path / "out"), weights(tmp_path / "whole"))


def test_with_cosine_the_steps_decide_the_weights_and_the_epochs_do_not(drawn_run: Path, whole: Path) -> None:
    before = weights(whole)
    with pytest.raises(UserError, match=r"optimisation\.steps: 5 then, 6 now"):
        train(recipe(drawn_run, **by_steps(drawn_run, optimisation__steps=6)), whole, QUIET)
    training(drawn_run, whole, **by_steps(drawn_run, optimisation__epochs=7))
    assert not different(weights(whole), before)


def test_matching_costs_are_those_of_the_recipe() -> None:
    given = load_train_recipe("pretrain", {"loss.costs.box": 7})
    criterion = make_objective(network("parseda"), given).criterion
    assert isinstance(criterion, DetectionCriterion)
    assert criterion.costs == MatchingCosts(box=7)
    assert load_train_recipe("pretrain").loss.costs == MatchingCosts()
