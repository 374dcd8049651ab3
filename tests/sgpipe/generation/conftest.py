"""Fixtures of the tests of generation."""

from collections.abc import Iterator

import pytest

from tests.sgpipe.generation.in_process import without_ray


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """In the place of Ray, where a test is about something else."""
    with without_ray():
        yield
