"""Which runs the local engine does, and how it cuts them; its processes:
tests/integration/faults/test_local_workers.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgpipe.generation.engine import WorkUnit, cut_units, runs_locally
from sgpipe.recipe import StagePlan, load_recipe
from tests.values import values_of


@given(st.integers(1, 3000), st.integers(1, 600), st.integers(1, 8), st.data())
def test_what_an_interrupted_run_lacks_is_cut_as_the_whole_was(
    rows: int, max_rows: int, actors: int, data: st.DataObject
) -> None:
    units = cut_units([WorkUnit("val", 0, rows)], max_rows, actors, rows)
    assert [row for unit in units for row in range(unit.start, unit.stop)] == list(range(rows))
    assert max(values_of(units, "rows")) <= max_rows
    done = data.draw(st.integers(0, len(units) - 1))
    left = WorkUnit("val", units[done].start, rows)
    assert cut_units([left], max_rows, actors, rows) == units[done:]


@pytest.mark.parametrize(
    ("settings", "images", "local"),
    [
        ({}, 10**6, True), ({"engine.address": "auto"}, 1, False), ({"engine.kind": "local"}, 10**6, True),
        ({"engine.kind": "ray"}, 1, False), ({"tag.resources.gpus": 1}, 100, True),
        ({"tag.resources.gpus": 1}, 10**6, False), ({"tag.resources.cpus": 2}, 10**6, False),
    ],
)  # fmt: skip
def test_where_a_run_is_done(settings: dict[str, object], images: int, local: bool) -> None:
    recipe = load_recipe("coco", settings)
    assert runs_locally(recipe.engine, StagePlan.of_recipe(recipe), images) == local
