"""Fixtures shared by the tests of sgpipe."""

from pathlib import Path

import pytest
import torch

from tests.sgpipe.training.trainings import make_run, training


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread(loaded_once: None) -> None:
    """Small networks are fastest with one thread. Stages set one, too, and sums depend on the
    number of threads.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of a few synthetic images; tests must not change them."""
    return make_run(tmp_path_factory.mktemp("drawn-run"))


@pytest.fixture(scope="session")
def trained_tagger(drawn_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete training without interruption, validated on its training data; tests must not
    change it.
    """
    out = tmp_path_factory.mktemp("trained") / "out"
    training(drawn_run, out, data__val=[{"shards": str(drawn_run)}], output__tensorboard=True)
    return out


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once, and without a key unless a test sets one."""
    monkeypatch.setattr("sgpipe.stages.served.endpoint._FIRST_PAUSE", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
