"""Fixtures of the tests of generation."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.detections import CAPTIONS, CATEGORIES, Files, make_coco
from tests.factories import make_blip, untrained_tagger
from tests.sgpipe.generation.coco_runs import FEW, IMAGES
from tests.sgpipe.generation.in_process import RAN, without_ray


@pytest.fixture(scope="module")
def in_this_process() -> Iterator[None]:
    """In the place of Ray, where a test is about something else."""
    with without_ray():
        yield


@pytest.fixture
def engine_of_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Worker processes for the slow tests. The others run in this process."""
    RAN.clear()
    with nullcontext() if request.node.get_closest_marker("slow") else without_ray():
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger and a captioner, random; tests must not change them."""
    folder = tmp_path_factory.mktemp("models")
    untrained_tagger(folder / "tagger", [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    make_blip(folder / "captioner")
    return folder


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Images of which two are missing."""
    return make_coco(tmp_path_factory.mktemp("coco"), images=IMAGES, missing=(4, 7))


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Few images of which one is missing."""
    return make_coco(tmp_path_factory.mktemp("coco"), images=FEW, missing=(4,))
