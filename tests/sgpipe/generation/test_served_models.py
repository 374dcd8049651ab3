"""Runs and plans whose captions come from a server: what they keep, what they ask again, and what
ends them.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.plan import plan
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.stats.measures import measure
from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.storage.run_folder import REQUESTS
from sgpipe.storage.tokens import CACHED, COMPLETION, PROMPT, Prices, Spending, tokens_of
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, Files, make_coco
from tests.endpoint_server import EndpointServer, scripted
from tests.sgpipe.generation.in_process import label, rows
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("in_this_process", "no_pauses")

IMAGES = 6


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_coco(tmp_path_factory.mktemp("coco"), images=520)


def caption(body: dict[str, Any]) -> list[str]:
    return [CAPTIONS[body["seed"] % 4]]


def captioned(coco: Files, server: EndpointServer, **settings: object) -> Recipe:
    values = {
        "source.format": "coco", "source.splits": {"val": {"annotations": coco.annotations, "images": coco.images}},
        "caption": {"captioner": "tiny-vlm", "endpoint": server.url, "samples": 1},
        "caption.requests": {"in_flight": 1, "retries": 1}, "tag.method": "all", "limit": IMAGES,
    }  # fmt: skip
    return load_recipe("folder", {**values, **settings})


def test_what_was_refused_is_asked_again_if_that_is_asked_for(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption, scripted(None, None, "refusal", None, "rejected")) as server:
        label(captioned(coco, server), tmp_path / "run")
        assert [row.error for row in rows(tmp_path / "run") if not row.ok] == [
            "caption: the model refused: I cannot describe people.",
            "caption: HTTP 400: The prompt is longer than the maximum model length",
        ]
        server.requests.clear()
        label(captioned(coco, server), tmp_path / "run", retry_failed=True)
        assert len(server.requests) == 3
    assert all(values_of(rows(tmp_path / "run"), "ok"))


def test_answers_of_a_run_without_a_shard_are_kept(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(
        caption, lambda body, attempt: "broken" if len(server.requests) > 4 else None
    ) as server:
        with pytest.raises(EngineError, match="does not answer: HTTP 500"):
            label(captioned(coco, server), tmp_path / "run")
        assert (tmp_path / "run/.sgpipe" / REQUESTS).is_file()
        server.faults = scripted()
        label(captioned(coco, server), tmp_path / "run")
        # the last is the example before the work
        assert sorted(server.paid.values()) == [1] * IMAGES + [2]


def test_candidates_of_an_image_are_asked_about_one_numbered_image(
    coco: Files, tmp_path: Path
) -> None:
    vlm = {"tag": {"method": "vlm", "tagger": "tiny-vlm", "questions": "shared"}}
    with EndpointServer(lambda body: ["Yes"] if body.get("logprobs") else caption(body)) as server:
        settings = {**vlm, "tag.endpoint": server.url, "pair.candidates": "image"}
        label(captioned(coco, server, **settings), tmp_path / "run")
    asked = [body for body in server.requests if body.get("logprobs")]
    shown = {body["messages"][0]["content"][0]["image_url"]["url"] for body in asked}
    records = rows(tmp_path / "run")
    related = [record for record in records if record.relations]
    assert len(shown) == len(related) + 1, "and that of the example before the work"
    assert len(asked) == 2 * sum(len(record.relations) for record in records) + 1
    assert {relation.origin for record in related for relation in record.relations} == {"vlm"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "in_flight", "patience", "asked"),
    [
        (4, 1, 60, 4), (None, 1, 60, 64), (None, 6, 60, 2 * 8 * 6), (None, 400, 60, 256), (300, 6, 60, 300),
        (300, 1, 0, 100),  # a unit
    ],
)  # fmt: skip
def test_a_plan_asks_about_no_more_images_than_said(
    coco, images, in_flight, patience, asked, monkeypatch
) -> None:
    monkeypatch.setattr("sgpipe.generation.plan.PATIENCE", patience)
    string_io = io.StringIO()
    with EndpointServer() as server:
        settings = {"caption.requests.in_flight": in_flight, "engine.cpus": 1, "limit": None}
        planned = plan(
            captioned(coco, server, **settings),
            Progress(Console(file=string_io, width=200)),
            images,
        )
    assert planned.sampled == asked
    assert len(server.requests) == asked + 1  # an example before the work
    limit = asked if patience else images
    assert f"asking the served model about {limit} images\n" in string_io.getvalue()


def tokens_in(out: Path) -> Counter[str]:
    return tokens_of(add_up(Manifest.load(out), 0, {}).counts)


def test_tokens_are_in_the_manifest_also_those_of_a_command_that_failed(
    coco: Files, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    usage = json.dumps({PROMPT: 10, COMPLETION: 2, "prompt_tokens_details": {CACHED: 4}})
    paid = Counter({PROMPT: 10 * IMAGES, CACHED: 4 * IMAGES, COMPLETION: 2 * IMAGES})

    def faults(body: str, attempt: int) -> str:
        return "broken" if fails and len(server.requests) > 4 else usage

    fails = True
    with EndpointServer(caption, faults) as server:
        with pytest.raises(EngineError, match="does not answer: HTTP 500"):
            label(captioned(coco, server), out)
        assert tokens_in(out)[PROMPT] == 20, "of two images; the third has no shard yet"
        fails = False
        summary, lines = label(captioned(coco, server, **{"engine.unit_size": 2}), out)
    assert tokens_in(out) == paid
    assert summary.as_json()["counts"].items() >= paid.items()  # type: ignore[attr-defined]
    assert measure(str(out)).tokens == paid
    assert any("relations, 72 tokens (24 cached)" in line for line in lines), lines


def test_a_run_stops_before_its_budget_and_a_larger_one_continues(
    coco: Files, tmp_path: Path
) -> None:
    usage = json.dumps({PROMPT: 1_000_000, COMPLETION: 100_000})  # which cost 1.2
    prices = Prices(prompt=1, completion=2, cached=1)
    out = tmp_path / "run"
    examples = 0
    with EndpointServer(caption, lambda body, attempt: usage) as server:
        recipe = captioned(coco, server, **{"engine.unit_size": 2})
        for max_cost, images in ((3.7, 3), (3.7, 3), (6.1, 5)):
            with pytest.raises(EngineError, match=f"^--max-cost {max_cost:g} is used up: the run"):
                label(recipe, out, spending=Spending(prices, max_cost))
            examples += 1  # before the work
            assert sum(server.paid.values()) == images + examples
        assert len(rows(out)) == 4
        _, lines = label(recipe, out, spending=Spending(prices, 8))
    assert all(values_of(rows(out), "ok"))
    assert any(line.endswith("6,600,000 tokens, cost 7.20") for line in lines), lines


def test_prices_without_a_served_model_are_refused(coco: Files, tmp_path: Path) -> None:
    with EndpointServer() as server:
        split = {"annotations": coco.annotations, "images": coco.images, "captions": coco.captions}
        settings = {"caption": {"captioner": None}, "source.splits": {"val": split}}
        recipe = captioned(coco, server, **settings)
        with pytest.raises(UserError, match="no stage of this run asks an endpoint"):
            label(recipe, tmp_path / "run", spending=Spending(Prices(1, 1, 1)))
