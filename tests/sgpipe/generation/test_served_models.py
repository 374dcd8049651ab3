"""Runs whose captions and triplets come from a server: what they keep, what they ask again, and what ends them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.errors import EngineError
from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.storage.run_folder import REQUESTS
from sgpipe.storage.shards import iter_records
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, Files, make_coco
from tests.endpoint_server import EndpointServer, scripted

pytestmark = pytest.mark.usefixtures("in_this_process", "no_pauses")

IMAGES = 6


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_coco(tmp_path_factory.mktemp("coco"), images=IMAGES)


def caption(body: dict[str, Any]) -> list[str]:
    return [CAPTIONS[body["seed"] % 4]]


def run(coco: Files, out: Path, server: EndpointServer, *, retry_failed: bool = False, **settings: Any) -> str:
    """What the run says."""
    split = {"annotations": coco.annotations, "images": coco.images}
    values = {
        "source.splits": {"val": split},
        "caption.captioner": "tiny-vlm",
        "caption.endpoint": server.url,
        "caption.samples": 1,
        "caption.requests": {"in_flight": 1, "retries": 1},
        "tag.method": "all",
    }
    said = io.StringIO()
    recipe = load_recipe("folder", {"source.format": "coco", **values, **settings})
    generate(recipe, out, Progress(Console(file=said, width=500)), retry_failed=retry_failed)
    return said.getvalue()


def test_what_was_refused_is_asked_again_if_that_is_asked_for(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption, scripted(None, None, "refusal", None, "rejected")) as server:
        run(coco, tmp_path / "run", server)
        failed = [row.error for row in iter_records(tmp_path / "run") if not row.ok]
        assert failed == [
            "caption: the model refused: I cannot describe people.",
            "caption: HTTP 400: The prompt is longer than the maximum model length",
        ]
        server.requests.clear()
        run(coco, tmp_path / "run", server, retry_failed=True)
        assert len(server.requests) == 3
    assert all(row.ok for row in iter_records(tmp_path / "run"))


def test_answers_of_a_run_without_a_shard_are_kept(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption, lambda body, attempt: "broken" if len(server.requests) > 4 else None) as server:
        with pytest.raises(EngineError, match="does not answer: HTTP 500"):
            run(coco, tmp_path / "run", server)
        assert (tmp_path / "run/.sgpipe" / REQUESTS).is_file()
        server.faults = scripted()
        run(coco, tmp_path / "run", server)
        assert sorted(server.paid.values()) == [1] * IMAGES + [2]  # the last is the example before the work
