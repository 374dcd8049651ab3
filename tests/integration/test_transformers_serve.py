"""Captions by a real server, `transformers serve`, with a tiny vision-language model with random weights.

`make transformers-serve` installs what the server needs apart from sgpipe. CI does without it: these tests are skipped
where it was not run. The server takes one answer per request, and no log-probabilities.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig, Requests
from sgpipe.records import Record
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.endpoint import CacheFolder, ChatEndpoint, ChatRequest, ChatSampling, conversation
from tests.vlm_checkpoints import make_vlm

PYTHON = Path(__file__).parents[2] / ".serving/bin/python"
START = 300  # seconds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(), reason="transformers serve is not installed; `make transformers-serve` installs it"
    ),
]


@dataclass(frozen=True)
class Served:
    """A checkpoint behind a server."""

    url: str
    model: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    model = str(make_vlm(folder / "model", "qwen2_5_vl"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [PYTHON, "-c", "from transformers.cli.transformers import main; main()", "serve", model]
    options = ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "server.log")
        yield Served(f"http://127.0.0.1:{port}/v1", model)
    finally:
        process.terminate()
        process.wait(60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise AssertionError(log.read_text())


def test_images_are_captioned(served: Served, tmp_path: Path) -> None:
    colours = ["red", "green", "blue"]
    for number, colour in enumerate(colours):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{number}.jpg")
    config = CaptionConfig(
        captioner=served.model, endpoint=served.url, samples=2, max_tokens=8, requests=Requests(timeout=300)
    )
    stage = CaptionStage(config, {"val": tmp_path}, seed=0)
    stage.check()
    stage.setup()
    stage.cache_folder = CacheFolder(tmp_path)
    records = stage([Record(str(n), "coco", "val", f"{n}.jpg", 60, 40) for n in range(3)])
    assert [record.error for record in records] == [None] * 3
    assert all(len(record.captions) == 2 for record in records)
    assert all(caption.text.strip() and "\n" not in caption.text for record in records for caption in record.captions)


def test_what_it_cannot_do_is_named_before_the_work(served: Served) -> None:
    endpoint = ChatEndpoint(served.url, served.model, Requests(timeout=300, retries=0))
    endpoint.check()
    example = ChatRequest(conversation("Is it red?"), ChatSampling(max_tokens=1), logprobs=True)
    with pytest.raises(UserError, match="the answer has no log-probabilities"):
        endpoint.check(example)
    sampled = ChatRequest(conversation("Is it red?"), ChatSampling(max_tokens=1, top_k=50))
    with pytest.raises(UserError, match=r"refuses such requests .HTTP 422: Unexpected fields in the request: .'top_k'"):
        endpoint.check(sampled)
    with pytest.raises(UserError, match="does not serve 'another', but "):
        ChatEndpoint(served.url, "another", Requests()).check()
