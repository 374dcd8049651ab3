"""Fixtures of the tests of inference."""

from pathlib import Path

import pytest

from sgpipe.evaluation.inputs import data_classes
from sgpipe.training.initial_model import make_initial_model
from tests.sgpipe.training.trainings import recipe


@pytest.fixture(scope="package")
def network(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ParSeDA; tests must not change it."""
    folder = tmp_path_factory.mktemp("network") / "parseda"
    classes = data_classes(drawn_run)
    make_initial_model(recipe(drawn_run, "pretrain").model, [*classes.objects, *classes.relations], 0, folder)
    return folder
