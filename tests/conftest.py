"""Fixtures shared by all tests."""

import gc
import os

# before torch is imported: small tensors gain nothing from threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the hub

import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import typer.main
import typer.testing

# no test may depend on the load of the machine
hypothesis.settings.register_profile("sgpipe", deadline=None)
hypothesis.settings.load_profile("sgpipe")
gc.disable()  # until everything is imported, which makes no garbage

INTEGRATION = Path(__file__).parent / "integration"
LONGEST = {"test_documentation", "test_workers", "test_cluster", "test_notebook", "test_wheel"}


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes begin, so that no process is left with one at the end."""
    for item in items:
        if item.path.is_relative_to(INTEGRATION):
            item.add_marker("integration")
    items.sort(key=lambda item: (item.path.stem not in LONGEST, "integration" not in item.keywords))


def pytest_collection_finish() -> None:
    """What is imported stays: looking through it for garbage again and again takes a twentieth of
    the time.
    """
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Shells start jobs in the background deaf to Ctrl-C, and so would be the commands that tests
    start and stop.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def quick() -> Iterator[None]:
    """What tests need not do again: build the same command line for each command, wait for a disk
    they do not pull.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", cache(typer.main.get_command))
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def loaded_once() -> Iterator[None]:
    """Models that a test needs as others do; imported where there are such tests."""
    from tests.loaded_once import networks_loaded_once, parsers_loaded_once

    with networks_loaded_once(), parsers_loaded_once():
        yield


@pytest.fixture(autouse=True)
def handlers(interruptible: None) -> Iterator[None]:
    """A command that a test runs in this process handles signals; the second one would end all
    tests.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def oracle() -> Path:
    """The folder of reference figures and small real data; tests that need it skip without it."""
    folder = os.environ.get("SGPIPE_ORACLE")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SGPIPE_ORACLE does not name the folder of reference figures")
    return Path(folder)
