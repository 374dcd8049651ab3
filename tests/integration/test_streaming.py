"""Requests of several units are under way at once, on both engines, and the rows are those of one
unit after the other; a server may be away meanwhile.
"""

from __future__ import annotations

import io
import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sgpipe.generation.run import generate
from sgpipe.recipe import load_recipe
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.console import Progress
from tests.detections import CAPTIONS, make_coco
from tests.endpoint_server import EndpointServer, wait_until

pytestmark = pytest.mark.integration

IMAGES = 120
IN_FLIGHT = 24
UNIT = 6
QUIET = Progress(Console(quiet=True))


def caption(body: dict[str, Any]) -> list[str]:
    return [CAPTIONS[body["seed"] % 4]]


def hold_back(server: EndpointServer) -> None:
    """Have it answer the example, which each worker asks first, and no other request before there
    are some of three units.
    """
    examples: list[dict[str, Any]] = []
    enough = threading.Event()

    def answer(body: dict[str, Any]) -> list[str]:
        if not examples:
            examples.append(body)
        if body not in examples and not enough.is_set():
            with suppress(TimeoutError):
                wait_until(lambda: enough.is_set() or server.at_once > 2 * UNIT, 300)
            enough.set()
        return answer_at_once(body)

    answer_at_once = server.answer
    server.answer = answer


def be_away(server: EndpointServer, output: io.StringIO) -> None:
    """Answer nothing after a part of the requests, until the run says that it waits."""
    with suppress(TimeoutError):
        wait_until(lambda: server.paid.total() > 2 * UNIT, 300)
        server.away = True
        wait_until(lambda: "waiting for at most" in output.getvalue())
    server.away = False


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_requests_stream_across_units(tmp_path: Path, kind: str) -> None:
    coco = make_coco(tmp_path / "coco", images=IMAGES)
    rows = {}
    output = io.StringIO()
    for name, in_flight in (("alone", 1), ("streamed", IN_FLIGHT)):
        with EndpointServer(caption) as server:
            if name == "streamed":
                hold_back(server)
                threading.Thread(target=be_away, args=(server, output)).start()
            values = {
                "source.format": "coco",
                "source.splits": {"val": {"annotations": coco.annotations, "images": coco.images}},
                "caption": {"captioner": "tiny-vlm", "endpoint": server.url, "samples": 1},
                "caption.requests": {"in_flight": in_flight},
                "caption.resources.actors": 1,
                "tag.method": "all",
                "engine": {"kind": kind if name == "streamed" else "local", "unit_size": UNIT},
            }
            progress = Progress(Console(file=output, width=1000))
            generate(load_recipe("folder", values), tmp_path / name, progress)
        assert max(server.paid.values()) <= 2  # the example, before the work and by workers
        rows[name] = list(iter_records(tmp_path / name))
    assert 2 * UNIT < server.most_at_once <= IN_FLIGHT
    assert rows["streamed"] == rows["alone"]
    assert output.getvalue().count("waiting for at most") == 1
    assert output.getvalue().count(f"{server.url} answers again") == 1


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_all_actors_share_the_requests_of_a_run(tmp_path: Path, kind: str) -> None:
    coco = make_coco(tmp_path / "coco", images=IMAGES)
    with EndpointServer(caption, seconds=0.02) as server:
        values = {
            "source.format": "coco",
            "source.splits": {"val": {"annotations": coco.annotations, "images": coco.images}},
            "caption": {"captioner": "tiny-vlm", "endpoint": server.url, "samples": 1},
            "caption.requests": {"in_flight_of_run": 5},
            "caption.resources": {"actors": 2, "cpus": 0.5},
            "parse.resources.cpus": 0.5,
            "pair.resources.cpus": 0.5,
            "tag.method": "all",
            "tag.resources.cpus": 0.5,
            "engine": {"kind": kind, "unit_size": UNIT},
        }
        generate(load_recipe("folder", values), tmp_path / "run", QUIET)
    assert 1 < server.most_at_once <= 4  # two of each actor


def judge(body: dict[str, Any]) -> list[str]:
    """Find relations of dogs right, and state no relation of a caption."""
    if "response_format" in body:
        return ['{"relations": [{"subject": "man", "predicate": "riding", "object": "bicycle"}]}']
    question = body["messages"][-1]["content"][-1]["text"].rpartition("\n")[2]
    return ["Yes" if "dog" in question else "No"]


def number_captions(file: Path) -> None:
    """Make each caption another one."""
    content = json.loads(file.read_text())
    for number, item in enumerate(content["annotations"]):
        item["caption"] += f" at {number}"
    file.write_text(json.dumps(content))


def settings_of(stage: str, url: str, in_flight: int) -> dict[str, Any]:
    requests = {"in_flight": in_flight}
    if stage == "parse":
        model = {"parser": "llm", "model": "tiny-vlm"}
        return {"parse": {**model, "endpoint": url, "requests": requests}, "tag.method": "all"}
    model = {"method": "vlm", "tagger": "tiny-vlm", "threshold": 0.3}
    questions = stage.removeprefix("tag ")
    asked = {"endpoint": url, "requests": requests, "questions": questions}
    return {"tag": {**model, **asked}}


@pytest.mark.parametrize("kind", ["local", "ray"])
@pytest.mark.parametrize("stage", ["parse", "tag each", "tag shared"])
def test_parsers_and_taggers_are_asked_about_several_units(
    tmp_path: Path, stage: str, kind: str
) -> None:
    coco = make_coco(tmp_path / "coco", images=IMAGES)
    number_captions(coco.captions)
    rows = {}
    for name, in_flight in (("alone", 1), ("streamed", IN_FLIGHT)):
        with EndpointServer(judge) as server:
            if name == "streamed":
                hold_back(server)
            files = {"annotations": coco.annotations, "images": coco.images}
            values = {
                "source.format": "coco",
                "source.splits": {"val": {**files, "captions": coco.captions}},
                "caption.captioner": None,
                **settings_of(stage, server.url, in_flight),
                "engine": {"kind": kind if name == "streamed" else "local", "unit_size": UNIT},
            }
            for section in ("caption", "parse", "ground", "pair", "tag"):
                values[f"{section}.resources.actors"] = 1
            generate(load_recipe("folder", values), tmp_path / name, QUIET)
        assert max(server.paid.values()) <= 2  # the example, before the work and by workers
        rows[name] = list(iter_records(tmp_path / name))
    assert 2 * UNIT < server.most_at_once <= IN_FLIGHT
    assert rows["streamed"] == rows["alone"]
    assert any(record.relations for record in rows["alone"])
