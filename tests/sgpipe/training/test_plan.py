"""`sgpipe train --plan`: its schedule is that of the training, it keeps nothing, and it finds parts that fit."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.training import plan
from sgpipe.utils.gpu import MemoryFullError
from tests.sgpipe.training.trainings import BATCH, IMAGES, QUIET, STEPS, recipe


def test_a_plan_has_the_steps_of_the_training_and_keeps_nothing(
    drawn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = plan.plan_training(recipe(drawn_run, optimisation__accumulate=2), QUIET, steps=2)
    assert (found.steps, found.images, found.batch, found.part) == (STEPS, IMAGES, BATCH, BATCH // 2)
    assert (found.measured_steps, found.fitting, found.gpus) == (2, 1, 0)
    assert found.seconds == STEPS * found.step_seconds > 0
    assert 0 < found.memory < found.device_memory
    assert list(tmp_path.iterdir()) == []
    shared = plan.plan_training(recipe(drawn_run, workers__count=2), QUIET, steps=1)
    assert (shared.steps, shared.workers, shared.part) == (STEPS, 2, BATCH // 2)
    assert plan.plan_training(recipe(drawn_run, optimisation__steps=7), QUIET, steps=1).steps == 7
    with pytest.raises(UserError, match="a batch of 4 cannot be divided evenly between 3 workers"):
        plan.plan_training(recipe(drawn_run, workers__count=3), QUIET)


@pytest.mark.parametrize("fits", [2, 4, 8])
def test_parts_are_halved_until_they_fit(drawn_run: Path, monkeypatch: pytest.MonkeyPatch, fits: int) -> None:
    whole = plan.run_job

    def run_job(job: Any, show: Any) -> None:
        if job.recipe.optimisation.accumulate < fits:
            raise MemoryFullError("full")
        whole(job, show)

    monkeypatch.setattr(plan, "run_job", run_job)
    if fits > BATCH:
        with pytest.raises(UserError, match="full"):
            plan.plan_training(recipe(drawn_run), QUIET, steps=1)
    else:
        assert plan.plan_training(recipe(drawn_run), QUIET, steps=1).accumulate == fits
