"""Answers of served models in the store of a run: a machine that is lost is not paid for again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sgpipe.errors import EngineError
from sgpipe.files.stores import StorePath
from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.storage.tokens import PROMPT, tokens_of
from tests.detections import make_coco
from tests.endpoint_server import EndpointServer, Fault
from tests.sgpipe.generation.in_process import label, without_ray
from tests.sgpipe.generation.test_served_models import captioned
from tests.values import values_of

IMAGES = 30
ANSWERED = 14  # requests, then the server breaks
TOKENS = 5  # of each prompt


def test_a_run_whose_machine_is_lost_pays_for_no_answer_again(
    tmp_path: Path, store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends amid a unit; its folder and the caches of the machine are gone."""
    first = tmp_path / "first machine"
    second = tmp_path / "second machine"
    coco = make_coco(tmp_path / "coco", IMAGES)
    is_broken = True

    def fault(body: str, attempt: int) -> Fault | None:
        return "broken" if is_broken and len(server.requests) > ANSWERED else None

    with without_ray(), EndpointServer(faults=fault) as server:
        settings = {"limit": IMAGES, "engine.store": store.uri, "engine.unit_size": 4}
        recipe = captioned(coco, server, **settings)
        monkeypatch.setenv("SGPIPE_CACHE", str(first / "cache"))
        with pytest.raises(EngineError, match="HTTP 500"):
            label(recipe, first / "run")
        assert server.paid.total() == ANSWERED
        labelled = sum(values_of(Manifest.load(store).shards, "rows"))
        assert 0 < labelled < ANSWERED - 1, "there are answers that are in no shard"
        shutil.rmtree(first)
        is_broken = False
        monkeypatch.setenv("SGPIPE_CACHE", str(second / "cache"))
        label(recipe, second / "run")
    # the example with which each run checks the server is not kept
    assert sorted(server.paid.values()) == [1] * IMAGES + [2]
    summary = add_up(Manifest.load(store), 0, {})
    assert tokens_of(summary.counts)[PROMPT] == TOKENS * IMAGES
