"""Fixtures of the tests of trainings."""

from pathlib import Path

import pytest

from tests.sgpipe.training.trainings import make_run, training


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few drawn images; not to be changed."""
    return make_run(tmp_path_factory.mktemp("drawn-run"))


@pytest.fixture(scope="session")
def trained_tagger(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training, uninterrupted, validated on what it was trained on; not to be changed."""
    out = tmp_path_factory.mktemp("trained") / "out"
    training(drawn_run, out, data__val=[{"shards": str(drawn_run)}], output__tensorboard=True)
    return out
