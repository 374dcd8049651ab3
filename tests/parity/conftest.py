"""Where the tests of parity find reference figures: in this repository, and in the full set beside
it.
"""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def subset() -> Path:
    """The part of the reference figures that the repository holds; see its README.md."""
    return Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def full(oracle: Path) -> Path:
    """All of them; tests that need them skip where SGPIPE_ORACLE names no folder."""
    return oracle / "golden"


@pytest.fixture(scope="session", params=["subset", pytest.param("full", marks=pytest.mark.slow)])
def golden(request: pytest.FixtureRequest) -> Path:
    """The subset; and the full set, in the slow tests."""
    folder: Path = request.getfixturevalue(request.param)
    return folder
