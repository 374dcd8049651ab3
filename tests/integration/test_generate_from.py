"""`sgpipe generate --from`: runs that are killed, in stores, and with a detector, in processes of their own."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sgpipe.records import Record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_records
from sgpipe.storage.storage import ObjectStore
from sgpipe.storage.verify import verify
from tests.detections import CAPTIONS, CATEGORIES, Files, make_coco
from tests.factories import make_blip, untrained_tagger
from tests.integration.faults.conftest import server, store  # noqa: F401 - fixtures

ROOT = str(Path(__file__).parents[2])
IMAGES = 30
SMALL = ("--set", "tag.short_side=160", "--set", "tag.long_side=240", "--set", "caption.samples=2")
CHANGED = ("--set", "pair.candidates=image", "--set", "tag.threshold=0.3")
SLOWLY = ("--set", "engine.unit_size=1", "--set", "engine.cpus=1")


def start(*arguments: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", "generate", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": ROOT})


def generate(*arguments: str | Path) -> str:
    """What it says on standard error."""
    process = start(*arguments)
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


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
    generate(*result.options, "--captioner", captioner, "--out", result.parent)
    generate(*result.options, "--captioner", captioner, "--out", result.scratch, *CHANGED)
    shutil.rmtree(captioner)
    return result


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_run_goes_on_and_gives_the_rows_of_one_without_a_parent(made, tmp_path, seed):
    out, rng = tmp_path / "out", random.Random(seed)
    arguments = ("--from", made.parent, "--out", out, *CHANGED)
    killed = start(*arguments, *SLOWLY)
    enough, deadline = rng.randint(0, 12), time.monotonic() + 300
    while time.monotonic() < deadline and killed.poll() is None:
        manifest = out / "manifest.jsonl"
        if manifest.exists() and manifest.read_bytes().count(b"\n") > enough:
            break
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.3))
    killed.send_signal(signal.SIGKILL)
    _, said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    committed = len(Manifest.load(out).shards)
    assert committed < IMAGES
    more = ("--set", f"engine.cpus={rng.randint(1, 2)}", "--set", f"engine.unit_size={rng.randint(1, 7)}")
    said = generate(*arguments, *more)
    assert f"captions and triplets from {made.parent}; pair and tag to run" in said
    assert rows(out) == rows(made.scratch)
    assert [row.captions for row in rows(out)] == [row.captions for row in rows(made.parent)]
    assert verify(out).ok


def test_parent_and_run_may_be_in_stores(made, tmp_path, store, monkeypatch):  # noqa: F811
    first, second = (ObjectStore(f"{store.uri}/{name}") for name in ("first", "second"))
    monkeypatch.setenv("PYTHONPATH", ROOT)
    file = [*made.options, "--captions", str(made.files.captions)]
    generate(*file, "--out", tmp_path / "first", "--store", first.uri)
    generate(*file, "--out", tmp_path / "scratch", *CHANGED)
    generate("--from", first.uri, "--out", tmp_path / "from-store", *CHANGED)
    assert rows(tmp_path / "from-store") == rows(tmp_path / "scratch")
    generate("--from", tmp_path / "first", "--out", tmp_path / "second", "--store", second.uri, *CHANGED)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from sgpipe.cli.main import main; main()",
            "fetch",
            second.uri,
            "--out",
            tmp_path / "x",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "x") == rows(tmp_path / "scratch")


def test_detected_boxes_are_kept_with_their_scores(tmp_path):
    shutil.copytree(Path(ROOT) / "tests" / "data" / "written_by_0_1" / "drawn" / "images", tmp_path / "images")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    models = ("--detector", "MINIWORLD", "--captioner", "MINIWORLD", "--tagger", "MINIWORLD")
    options = (
        "folder",
        "--images",
        tmp_path / "images",
        *models,
        "--set",
        "tag.short_side=96",
        "--set",
        "tag.long_side=144",
    )
    generate(*options, "--set", "caption.samples=1", "--out", tmp_path / "parent")
    said = generate("--from", tmp_path / "parent", "--set", "caption.samples=2", "--out", tmp_path / "new")
    assert (
        f"boxes from {tmp_path / 'parent'}; caption, parse, pair and tag to run (caption.samples: 1 then, 2 now" in said
    )
    generate(*options, "--set", "caption.samples=2", "--out", tmp_path / "scratch")
    assert rows(tmp_path / "new") == rows(tmp_path / "scratch")
    assert sum(len(row.box_scores or ()) for row in rows(tmp_path / "new")) > 0
    assert [row.ok for row in rows(tmp_path / "new")].count(False) == 1
