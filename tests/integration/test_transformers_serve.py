"""Captions by a real server with a random tiny model; skipped without `make transformers-serve`, as
in CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig, Replicas, Requests
from sgpipe.records import Record
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import ChatRequest
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.stages.served.engines.local import LocalReplicas
from tests.integration.served import served
from tests.values import values_of
from tests.vlm_checkpoints import make_vlm

PYTHON = Path(__file__).parents[2] / ".serving/bin/python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists(),
        reason="transformers serve is not installed; `make transformers-serve` installs it",
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_vlm(tmp_path_factory.mktemp("serve") / "model", "qwen2_5_vl"))


@pytest.fixture(scope="module")
def url(model: str) -> Iterator[str]:
    folder = Path(model).parent
    program = [
        PYTHON,
        "-c",
        "from transformers.cli.transformers import main; main()",
        "serve",
        model,
    ]
    options = ["--host", "127.0.0.1", "--device", "cpu", "--dtype", "float32"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    with served([*program, *options], folder / "server.log", offline) as address:
        yield f"{address}/v1"


def test_images_are_captioned(url: str, model: str, tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (60, 40), colour).save(tmp_path / f"{number}.jpg")
    config = CaptionConfig(
        captioner=model, endpoint=url, samples=2, max_tokens=8, requests=Requests(timeout=300)
    )
    stage = CaptionStage(config, {"val": tmp_path}, seed=0)
    stage.check()
    stage.setup()
    stage.cache_folder = CacheFolder(tmp_path)
    records = stage([Record(str(n), "coco", "val", f"{n}.jpg", 60, 40) for n in range(3)])
    assert values_of(records, "error") == [None] * 3
    assert all(len(record.captions) == 2 for record in records)
    assert all(
        caption.text.strip() and "\n" not in caption.text
        for record in records
        for caption in record.captions
    )


def test_what_it_cannot_do_is_named_before_the_work(url: str, model: str) -> None:
    endpoint = ChatEndpoint(url, model, Requests(timeout=300, retries=0))
    endpoint.check()
    example = ChatRequest("Is it red?", max_tokens=1, logprobs=True)
    with pytest.raises(UserError, match="the answer has no log-probabilities"):
        endpoint.check(example)
    sampled = ChatRequest("Is it red?", max_tokens=1, top_k=50)
    with pytest.raises(
        UserError,
        match=r"refuses such requests .HTTP 422: Unexpected fields in the request: .'top_k'",
    ):
        endpoint.check(sampled)
    with pytest.raises(UserError, match="does not serve 'another', but "):
        ChatEndpoint(url, "another", Requests()).check()


def test_a_run_starts_it_itself(model: str, tmp_path: Path) -> None:
    main = "from transformers.cli.transformers import main; main()"
    engine = f"{PYTHON} -c '{main}' serve {{model}} --host {{host}} --port {{port}}"
    arguments = ("--device", "cpu", "--dtype", "float32")
    config = CaptionConfig(
        captioner=model,
        engine=engine,
        replicas=Replicas(gpus=0, arguments=arguments),
        samples=2,
        max_tokens=8,
        requests=Requests(timeout=300),
    )
    Image.new("RGB", (60, 40), "red").save(tmp_path / "0.jpg")
    lines: list[str] = []
    servers = LocalReplicas({"caption": config}, tmp_path / "engines", lines.append)
    try:
        urls = servers.start()["caption"]
        stage = CaptionStage(
            config.model_copy(update={"endpoint": urls}), {"val": tmp_path}, seed=0
        )
        stage.check()
        stage.setup()
        [record] = stage([Record("0", "coco", "val", "0.jpg", 60, 40)])
    finally:
        servers.close()
    assert record.ok
    assert len(record.captions) == 2
    assert "1 of 1 server of " in lines[1]
