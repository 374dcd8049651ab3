"""Back-pressure: a quick stage does not run away from a slow one."""

from pathlib import Path

import pytest

from tests.integration.faults.runs import Run, make_dataset, rows
from tests.integration.faults.stage import MARKS, SECONDS

IMAGES, ACTORS = 80, 3


@pytest.mark.soak
def test_a_quick_stage_waits_for_a_slow_one(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    run = Run(make_dataset(tmp_path / "data", IMAGES), tmp_path / "out")
    run.environment = {SECONDS: "0.4", MARKS: str(marks)}
    ahead: list[int] = []
    run.start()
    run.wait_for(lambda: ahead.append(len(list(marks.iterdir())) - run.committed))
    assert run.wait() == 0, run.said
    assert len(rows(run.out)) == len(list(marks.iterdir())) == IMAGES
    assert max(ahead) > ACTORS
    assert max(ahead) <= 4 * ACTORS + 2  # the turnstile hears of a shard a little later than the manifest
