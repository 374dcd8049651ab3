"""`sgpipe generate --from`: runs that are killed and in stores, in processes of their own; and with a detector."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files.object_store import StorePath
from sgpipe.records import Record
from sgpipe.storage.shards import iter_records
from tests.detections import CAPTIONS, CATEGORIES, Files, make_coco
from tests.factories import make_blip, untrained_tagger
from tests.integration.faults.conftest import server, store  # noqa: F401 - fixtures
from tests.sgpipe.generation.in_process import without_ray

IMAGES = 30
SMALL = ("--set", "tag.short_side=160", "--set", "tag.long_side=240", "--set", "caption.samples=2")
CHANGED = ("--set", "pair.candidates=image", "--set", "tag.threshold=0.3")


def sgpipe(*words: str | Path) -> str:
    """What it says on standard error, in this process and without Ray."""
    with without_ray():
        done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.stderr


def rows(out: Path) -> list[Record]:
    return list(iter_records(out))


@dataclass(frozen=True)
class Made:
    """A run whose captioner is gone, and one without a parent that has other settings from its pairs on."""

    files: Files
    tagger: Path
    parent: Path
    scratch: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("coco", *self.files.options[:4], "--tagger", str(self.tagger), *SMALL)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("made")
    tagger, captioner = folder / "tagger", folder / "captioner"
    untrained_tagger(tagger, [*CAPTIONS, *CATEGORIES.values(), "no objects"])
    make_blip(captioner)
    result = Made(make_coco(folder / "coco", IMAGES, missing=(4,)), tagger, folder / "parent", folder / "scratch")
    sgpipe("generate", *result.options, "--captioner", captioner, "--out", result.parent)
    sgpipe("generate", *result.options, "--captioner", captioner, "--out", result.scratch, *CHANGED)
    shutil.rmtree(captioner)
    return result


def test_parent_and_run_may_be_in_stores(made, tmp_path, store):  # noqa: F811
    first, second = (StorePath(f"{store.uri}/{name}") for name in ("first", "second"))
    file = [*made.options, "--captions", str(made.files.captions)]
    sgpipe("generate", *file, "--out", tmp_path / "first", "--store", first.uri)
    sgpipe("generate", *file, "--out", tmp_path / "scratch", *CHANGED)
    sgpipe("generate", "--from", first.uri, "--out", tmp_path / "from-store", *CHANGED)
    assert rows(tmp_path / "from-store") == rows(tmp_path / "scratch")
    sgpipe("generate", "--from", tmp_path / "first", "--out", tmp_path / "second", "--store", second.uri, *CHANGED)
    sgpipe("fetch", second.uri, "--out", tmp_path / "x")
    assert rows(tmp_path / "x") == rows(tmp_path / "scratch")
