"""Captions by a server: what it is shown, in which order captions come back, and what becomes of
refused images.
"""

from __future__ import annotations

import base64
import io
import random
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig, Requests
from sgpipe.records import Record
from sgpipe.stages.caption.stage import CaptionStage
from tests.endpoint_server import EndpointServer, scripted, shown_image
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("no_pauses")

COLOURS = ["red", "lime", "blue", "yellow", "white", "black", "cyan", "magenta"]


def stage(server: EndpointServer, folder: Path, **settings: object) -> CaptionStage:
    values = {
        "captioner": "tiny-vlm",
        "endpoint": server.url,
        "samples": 2,
        "requests": Requests(in_flight=8),
    }
    caption_stage = CaptionStage(CaptionConfig(**(values | settings)), {"val": folder}, seed=0)
    caption_stage.check()
    caption_stage.setup()
    server.requests.clear()
    return caption_stage


def records(folder: Path, number: int = 24) -> list[Record]:
    drawn = []
    for index in range(number):
        Image.new("RGB", (20 + index, 20), COLOURS[index % 8]).save(folder / f"{index}.png")
        drawn.append(Record(str(index), "coco", "val", f"{index}.png", 20 + index, 20))
    return drawn


def size_and_colour(body: dict[str, Any]) -> list[str]:
    time.sleep(random.random() / 50)
    image = shown_image(body)
    return [f" {image.width}  {image.convert('RGB').getpixel((0, 0))}\n"] * body.get("n", 1)


def test_every_image_gets_its_own_captions_in_order(tmp_path: Path) -> None:
    with EndpointServer(size_and_colour) as server:
        done = stage(server, tmp_path)(records(tmp_path))
        assert 1 < server.most_at_once <= 8
    assert [values_of(record.captions, "text") for record in done] == [
        [f"{20 + index} {Image.new('RGB', (1, 1), COLOURS[index % 8]).getpixel((0, 0))}"] * 2
        for index in range(24)
    ]


def test_a_refused_image_is_an_error_row(tmp_path: Path) -> None:
    with EndpointServer() as server:
        captioner = stage(server, tmp_path, requests=Requests(in_flight=1))
        server.faults = scripted("refusal", None, "rejected")
        first, second, third = captioner(records(tmp_path, 3))
    assert (first.status, first.error) == (
        "error",
        "caption: the model refused: I cannot describe people.",
    )
    assert (second.ok, len(second.captions)) == (True, 2)
    assert third.error == "caption: HTTP 400: The prompt is longer than the maximum model length"


def test_captions_are_plain_lines(tmp_path: Path) -> None:
    answers = iter(['"A dog\non a **sofa**."\n'] * 2 + ["<think>Two boxes, one of"])
    with EndpointServer(lambda body: [next(answers)]) as server:
        captioner = stage(server, tmp_path, samples=1, requests=Requests(in_flight=1))
        first, second = captioner(records(tmp_path, 2))
    assert values_of(first.captions, "text") == ["A dog. on a sofa."]
    assert (second.captions, second.error) == ([], "caption: the answer has no caption in it")


def sent_image(file: Path, size: tuple[int, int], **settings: object) -> tuple[str, bytes]:
    """The media type and content of the image in the request for a file."""
    with EndpointServer() as server:
        stage(server, file.parent, **settings)([Record("1", "coco", "val", file.name, *size)])
    (body,) = server.requests
    head, _, data = body["messages"][-1]["content"][0]["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data)


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "image/jpeg"), ("a.png", "image/png")])
def test_plain_files_are_sent_as_they_are(tmp_path: Path, name: str, kind: str) -> None:
    Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / name)
    assert sent_image(tmp_path / name, (40, 30)) == (kind, (tmp_path / name).read_bytes())


@pytest.mark.parametrize("form", ["turned", "transparent", "large", "webp"])
def test_other_files_are_sent_as_the_captioner_would_see_them(tmp_path: Path, form: str) -> None:
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    size = (40, 30)
    settings = {}
    file = tmp_path / ("a.webp" if form == "webp" else "a.png")
    options: dict[str, Any] = {"lossless": True} if form == "webp" else {}
    if form == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        size = (30, 40)
        options = {"exif": exif}
    elif form == "transparent":
        image.putalpha(100)
    elif form == "large":
        settings = {"image_size": 20}
    image.save(file, **options)
    media_type, content = sent_image(file, size, **settings)
    sent = Image.open(io.BytesIO(content))
    assert (media_type, content != file.read_bytes()) == ("image/jpeg", True)
    assert (sent.mode, sent.size) == ("RGB", (20, 15) if form == "large" else size)


def test_beam_search_is_not_there(tmp_path: Path) -> None:
    with (
        EndpointServer() as server,
        pytest.raises(UserError, match=r"^caption.decoding: an endpoint samples"),
    ):
        stage(server, tmp_path, decoding="beam")
