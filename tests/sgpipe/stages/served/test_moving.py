"""Servers of an engine on a cluster: requests go where they have moved to."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.recipe import Requests
from sgpipe.stages.served import moving
from sgpipe.stages.served.chat import ChatRequest
from sgpipe.stages.served.endpoint import ChatEndpoint
from sgpipe.stages.served.engines.addresses import (
    forget_urls,
    moving_endpoint,
    read_urls,
    write_urls,
)
from tests.endpoint_server import EndpointServer, wait_until

ENDPOINT = moving_endpoint("run", "caption")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.mark.usefixtures("no_pauses")
def test_requests_go_to_the_servers_that_are_there_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "_SECONDS", 0.01)
    with EndpointServer() as first, EndpointServer() as second, EndpointServer() as third:
        write_urls(ENDPOINT, [first.url, second.url])
        endpoint = ChatEndpoint(ENDPOINT, "tiny-vlm", Requests(in_flight=8))

        def ask() -> int:
            requests = [ChatRequest(f"What is in image {seed}?", seed=seed) for seed in range(16)]
            return len(list(endpoint.ask_all(requests)))

        assert ask() == 16
        assert first.requests
        write_urls(ENDPOINT, [second.url, third.url])
        wait_until(lambda: ask() == 16 and bool(third.requests))
        before = len(first.requests)
        assert ask() == 16
        assert len(first.requests) == before
        forget_urls(ENDPOINT)
        assert ask() == 16, "the last ones that are known are asked"


def test_the_folder_of_another_user_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    write_urls(ENDPOINT, ["http://a/v1"])
    assert read_urls(ENDPOINT) == ["http://a/v1"]
    user = os.getuid()
    [folder] = Path(tempfile.gettempdir()).iterdir()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    folder.rename(folder.with_name(f"sgpipe-replicas-{user + 1}"))
    with pytest.raises(UserError, match="belongs to another user: remove it, or set TMPDIR"):
        write_urls(ENDPOINT, ["http://b/v1"])
