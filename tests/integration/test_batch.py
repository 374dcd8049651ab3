"""Batches by commands in processes of their own: two commands label as a live run does, and one that
is killed leaves nothing half.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.tokens import tokens_of
from tests.batches import answer_batch, requests_of
from tests.detections import CAPTIONS, Files, make_coco
from tests.endpoint_server import EndpointServer, wait_until

pytestmark = pytest.mark.integration

IMAGES = 60


def caption(body: dict[str, Any]) -> list[str]:
    return [CAPTIONS[body["seed"] % 4] for _ in range(body.get("n", 1))]


def command(coco: Files, server: EndpointServer, out: Path, *options: object) -> list[str]:
    program = [sys.executable, "-c", "from sgpipe.cli.main import main; main()"]
    data = ["--images", coco.images, "--annotations", coco.annotations, "--split", "val"]
    model = ["--captioner", "tiny-vlm"]
    settings = [
        f"caption.endpoint={server.url}", "caption.samples=2", "tag.method=all",
        "engine.kind=local", "engine.unit_size=8",
    ]  # fmt: skip
    words = [*data, *model, "--out", out, *options]
    for setting in settings:
        words += ["--set", setting]
    return [*program, "generate", "coco", *map(str, words)]


def finished(words: list[str]) -> str:
    """Run a command; return what it says."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def tokens_in(out: Path) -> dict[str, int]:
    return dict(tokens_of(add_up(Manifest.load(out), 0, {}).counts))


def test_two_commands_label_as_a_live_run_and_nothing_is_sent(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", images=IMAGES)
    batch = tmp_path / "requests.jsonl"
    with EndpointServer(caption) as server:
        finished(command(coco, server, tmp_path / "live"))
        requests = len(server.headers)
        finished(command(coco, server, tmp_path / "run", "--batch-file", batch))
        answers = answer_batch(batch, server)
        prices = ["--prompt-price", 1, "--completion-price", 1]
        lines = finished(
            command(coco, server, tmp_path / "run", "--batch-answers", answers, *prices)
        )
        assert len(server.headers) == requests
    assert len(requests_of(batch)) == IMAGES
    assert f"{answers}: {IMAGES} answers" in lines
    assert "cost of tokens" in lines
    assert list(iter_records(tmp_path / "run")) == list(iter_records(tmp_path / "live"))
    assert tokens_in(tmp_path / "run") == tokens_in(tmp_path / "live")


def test_a_command_that_is_killed_while_it_writes_leaves_no_batch(tmp_path: Path) -> None:
    coco = make_coco(tmp_path / "coco", images=IMAGES)
    batch = tmp_path / "batches/requests.jsonl"
    with EndpointServer(caption) as server:
        words = command(coco, server, tmp_path / "run", "--batch-file", batch)
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(lambda: list(batch.parent.glob(".sgpipe-*/*.jsonl")) != [], seconds=120)
        process.kill()
        process.wait()
        assert not list(batch.parent.glob("*.jsonl")) or os.path.getsize(batch) > 0
        if not batch.exists():  # it was killed in time
            finished(words)
        assert len(requests_of(batch)) == IMAGES
        assert server.requests == []
