"""Runs that write their requests to files and read answers from files: rows as from a server, which
is asked nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.generation.batch import BatchFiles
from sgpipe.recipe import Recipe, load_recipe
from sgpipe.stages.served import batch
from sgpipe.storage.manifest import Manifest, add_up
from sgpipe.storage.tokens import COMPLETION, PROMPT, tokens_of
from tests.batches import EXPIRED, REJECTED, REJECTED_BY_VLLM, answer_batch, requests_of
from tests.detections import CAPTIONS, Files, make_coco
from tests.endpoint_server import EndpointServer, scripted
from tests.sgpipe.generation.in_process import label, rows

pytestmark = pytest.mark.usefixtures("in_this_process", "no_pauses")

IMAGES = 6
RELATIONS = '{"relations": [{"subject": 1, "predicate": "next to", "object": 2}]}'
GRAPH = '{"relations": [{"subject": "dog", "predicate": "on", "object": "sofa"}]}'


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return make_coco(tmp_path_factory.mktemp("coco"), images=20)


def caption(body: dict[str, Any]) -> list[str]:
    if "response_format" in body:
        return [RELATIONS if len(body["messages"]) > 1 or body["seed"] % 2 else "no JSON"]
    if body.get("logprobs"):
        return ["Yes"]
    return [CAPTIONS[body["seed"] % 4] for _ in range(body.get("n", 1))]


def captioned(coco: Files, server: EndpointServer, **settings: object) -> Recipe:
    values = {
        "source.format": "coco", "source.splits": {"val": {"annotations": coco.annotations, "images": coco.images}},
        "caption": {"captioner": "tiny-vlm", "endpoint": server.url, "samples": 2},
        "tag.method": "all", "limit": IMAGES, "engine.unit_size": 2,
    }  # fmt: skip
    return load_recipe("folder", {**values, **settings})


def all_served(coco: Files, server: EndpointServer) -> Recipe:
    """Three stages that ask, each about what the one before it answered."""
    return captioned(
        coco,
        server,
        **{
            "pair": {"candidates": "captions+marks", "model": "tiny-vlm", "endpoint": server.url},
            "tag": {"method": "vlm", "tagger": "other-vlm", "questions": "shared", "endpoint": server.url},
        },
    )  # fmt: skip


def written(recipe: Recipe, out: Path, file: Path, answers: Sequence[Path] = ()) -> list[str]:
    """Run with files in place of a server; return what the run says."""
    _, lines = label(recipe, out, batch_files=BatchFiles(file, answers))
    return lines


def taken_in(recipe: Recipe, out: Path, *answers: Path, **more: object) -> list[str]:
    _, lines = label(recipe, out, batch_files=BatchFiles(None, answers), **more)
    return lines


def tokens_in(out: Path) -> dict[str, int]:
    return dict(tokens_of(add_up(Manifest.load(out), 0, {}).counts))


def test_a_batch_gives_the_rows_of_a_server_that_is_asked_nothing(
    coco: Files, tmp_path: Path
) -> None:
    with EndpointServer(caption) as server:
        recipe = captioned(coco, server)
        label(recipe, tmp_path / "live")
        sent = server.requests[1:]  # without the example
        server.requests.clear()
        lines = written(recipe, tmp_path / "run", tmp_path / "b.jsonl")
        assert Manifest.load(tmp_path / "run").shards == []
        requests = requests_of(tmp_path / "b.jsonl")
        answers = answer_batch(tmp_path / "b.jsonl", server)
        taken_in(recipe, tmp_path / "run", answers)
        assert server.requests == []
    assert any("b.jsonl: 6 requests to tiny-vlm" in line for line in lines)
    for request in requests:
        request["body"]["max_tokens"] = request["body"].pop("max_completion_tokens")
    bodies = [json.dumps(request["body"], sort_keys=True) for request in requests]
    assert sorted(bodies) == sorted(json.dumps(body, sort_keys=True) for body in sent)
    assert {(request["method"], request["url"]) for request in requests} == {
        ("POST", "/v1/chat/completions")
    }
    assert rows(tmp_path / "run") == rows(tmp_path / "live")
    assert tokens_in(tmp_path / "run") == tokens_in(tmp_path / "live")
    assert tokens_in(tmp_path / "run")[PROMPT] == 5 * IMAGES


@pytest.mark.slow
def test_stages_that_ask_about_answers_write_one_round_after_the_other(
    coco: Files, tmp_path: Path
) -> None:
    models = ("tiny-vlm", "other-vlm")
    with EndpointServer(caption, models=models) as server:
        recipe = all_served(coco, server)
        label(recipe, tmp_path / "live")
        server.requests.clear()
        answers: list[Path] = []
        for number in range(10):
            file = tmp_path / f"{number}.jsonl"
            lines = written(recipe, tmp_path / "run", file, answers)
            if not file.exists():
                break
            parts = list(tmp_path.glob(f"{number}*.jsonl"))
            answers = [answer_batch(part, server) for part in parts]
        assert server.requests == []
    assert "no request lacks an answer: no batch was written" in lines
    assert number == 4  # captions, marks, marks that were wrong, questions of the tagger
    assert rows(tmp_path / "run") == rows(tmp_path / "live")
    assert tokens_in(tmp_path / "run") == tokens_in(tmp_path / "live")


def test_captions_that_a_served_parser_reads_wait_for_it(coco: Files, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> list[str]:
        return [GRAPH] if "response_format" in body else caption(body)

    with EndpointServer(answer) as server:
        parse = {"parser": "llm", "model": "tiny-vlm", "endpoint": server.url}
        recipe = captioned(coco, server, parse=parse)
        label(recipe, tmp_path / "live")
        written(recipe, tmp_path / "run", tmp_path / "1.jsonl")
        first = answer_batch(tmp_path / "1.jsonl", server)
        written(recipe, tmp_path / "run", tmp_path / "2.jsonl", [first])
        second = answer_batch(tmp_path / "2.jsonl", server)
        lines = taken_in(recipe, tmp_path / "run", second)
    assert not any("fell back" in line for line in lines)
    assert rows(tmp_path / "run") == rows(tmp_path / "live")


def test_what_a_batch_failed_to_answer_is_asked_again_and_the_rest_is_kept(
    coco: Files, tmp_path: Path
) -> None:
    with EndpointServer(caption) as server:
        recipe = captioned(coco, server)
        label(recipe, tmp_path / "live")
        written(recipe, tmp_path / "run", tmp_path / "1.jsonl")
        failed = requests_of(tmp_path / "1.jsonl")[0]
        server.requests.clear()
        answers = answer_batch(
            tmp_path / "1.jsonl", server, lambda request: EXPIRED if request == failed else None
        )
        with pytest.raises(EngineError, match="answers are missing for 1 image"):
            taken_in(recipe, tmp_path / "run", answers)
        assert len(Manifest.load(tmp_path / "run").shards) == 2, "of three units"
        written(recipe, tmp_path / "run", tmp_path / "2.jsonl", [answers])
        assert requests_of(tmp_path / "2.jsonl") == [failed]
        assert server.requests == []
        label(recipe, tmp_path / "run")
        assert len(server.requests) == 2  # the example, and what failed
    assert rows(tmp_path / "run") == rows(tmp_path / "live")
    assert tokens_in(tmp_path / "run") == tokens_in(tmp_path / "live")


@pytest.mark.parametrize("refusal", [REJECTED, REJECTED_BY_VLLM])
def test_what_a_model_refuses_is_an_error_row_until_failures_are_retried(
    coco: Files, tmp_path: Path, refusal: dict[str, object]
) -> None:
    with EndpointServer(caption) as server:
        recipe = captioned(coco, server)
        written(recipe, tmp_path / "run", tmp_path / "1.jsonl")
        refused = requests_of(tmp_path / "1.jsonl")[0]
        answers = answer_batch(
            tmp_path / "1.jsonl", server, lambda request: refusal if request == refused else None
        )
        lines = taken_in(recipe, tmp_path / "run", answers)
        outcome = "5 answers, 1 refused request (HTTP 400: the prompt is too long)"
        assert f"{answers}: {outcome}" in lines
        errors = [row.error for row in rows(tmp_path / "run") if not row.ok]
        assert errors == ["caption: HTTP 400: the prompt is too long"]
        files = BatchFiles(tmp_path / "2.jsonl")
        label(recipe, tmp_path / "run", retry_failed=True, batch_files=files)
        assert requests_of(tmp_path / "2.jsonl") == [refused]
        taken_in(
            recipe, tmp_path / "run", answer_batch(tmp_path / "2.jsonl", server), retry_failed=True
        )
        assert all(row.ok for row in rows(tmp_path / "run"))
        label(recipe, tmp_path / "live")
    assert rows(tmp_path / "run") == rows(tmp_path / "live")


@pytest.mark.parametrize("fault", ["refusal", "filtered", "empty"])
def test_refusals_in_completions_are_those_of_a_server(
    coco: Files, tmp_path: Path, fault: str
) -> None:
    # the example is answered
    with EndpointServer(caption, scripted(None, *[fault] * IMAGES)) as server:
        recipe = captioned(coco, server)
        label(recipe, tmp_path / "live")
        written(recipe, tmp_path / "run", tmp_path / "b.jsonl")
        taken_in(recipe, tmp_path / "run", answer_batch(tmp_path / "b.jsonl", server, fault=fault))
    assert rows(tmp_path / "run") == rows(tmp_path / "live")
    assert not any(row.ok for row in rows(tmp_path / "run"))


def test_answers_that_were_taken_in_are_used_by_a_live_run(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption) as server:
        written(captioned(coco, server), tmp_path / "run", tmp_path / "b.jsonl")
        answers = answer_batch(tmp_path / "b.jsonl", server)
        few = captioned(coco, server, limit=2)
        lines = taken_in(few, tmp_path / "run", answers)
        assert any(line.startswith("NOTE: 4 of 6 answers in") for line in lines)
        label(captioned(coco, server), tmp_path / "run")
        assert len(server.requests) == 1  # the example
    assert tokens_in(tmp_path / "run")[COMPLETION] == 2 * 3 * IMAGES


def test_large_batches_are_written_in_parts(
    coco: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MOST_REQUESTS", 4)
    with EndpointServer(caption) as server:
        recipe = captioned(coco, server, limit=10)
        label(recipe, tmp_path / "live")
        written(recipe, tmp_path / "run", tmp_path / "b.jsonl")
        parts = [tmp_path / name for name in ("b.jsonl", "b-2.jsonl", "b-3.jsonl")]
        assert [len(requests_of(part)) for part in parts] == [4, 4, 2]
        taken_in(recipe, tmp_path / "run", *[answer_batch(part, server) for part in parts])
    assert rows(tmp_path / "run") == rows(tmp_path / "live")


def test_answers_of_another_run_are_refused_with_their_number(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption, models=("tiny-vlm", "other-vlm")) as server:
        other = captioned(coco, server, **{"caption.captioner": "other-vlm"})
        written(other, tmp_path / "other", tmp_path / "b.jsonl")
        answers = answer_batch(tmp_path / "b.jsonl", server)
        message = "none of 6 answers is to a request of this run"
        with pytest.raises(UserError, match=message):
            taken_in(captioned(coco, server), tmp_path / "run", answers)
        with pytest.raises(UserError, match=message):
            written(captioned(coco, server), tmp_path / "run", tmp_path / "c.jsonl", [answers])
    assert not (tmp_path / "c.jsonl").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_batch_that_failed_as_a_whole_is_refused(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption) as server:
        recipe = captioned(coco, server)
        written(recipe, tmp_path / "run", tmp_path / "b.jsonl")
        answers = answer_batch(tmp_path / "b.jsonl", server, lambda request: REJECTED)
        with pytest.raises(UserError, match="no request was answered: HTTP 400: the prompt is"):
            taken_in(recipe, tmp_path / "run", answers)
        answers.write_text("")
        with pytest.raises(UserError, match="there are no answers in it"):
            taken_in(recipe, tmp_path / "run", answers)
        with pytest.raises(UserError, match=r"b\.jsonl exists: choose another"):
            written(recipe, tmp_path / "run", tmp_path / "b.jsonl")


def test_what_a_batch_cannot_do_is_refused(coco: Files, tmp_path: Path) -> None:
    with EndpointServer(caption) as server:
        on_ray = captioned(coco, server, **{"engine.kind": "ray"})
        with pytest.raises(UserError, match="of this machine, not Ray"):
            written(on_ray, tmp_path / "run", tmp_path / "b.jsonl")
    served_by_none = load_recipe("miniworld", {"limit": 2})
    with pytest.raises(UserError, match="no stage of this run asks an endpoint"):
        written(served_by_none, tmp_path / "run", tmp_path / "b.jsonl")


def test_a_run_with_an_engine_of_its_own_starts_no_server_for_a_batch(
    coco: Files, tmp_path: Path
) -> None:
    with EndpointServer(caption) as server:
        label(captioned(coco, server), tmp_path / "live")
        engine = {
            "captioner": "tiny-vlm",
            "engine": "no-such-server {model} {host} {port}",
            "samples": 2,
        }
        recipe = captioned(coco, server, caption=engine)
        written(recipe, tmp_path / "run", tmp_path / "b.jsonl")
        taken_in(recipe, tmp_path / "run", answer_batch(tmp_path / "b.jsonl", server))
    assert rows(tmp_path / "run") == rows(tmp_path / "live")
