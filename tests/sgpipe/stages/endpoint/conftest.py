"""Endpoints on this machine that pause for no longer than a test can wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sgpipe.recipe import Requests
from sgpipe.stages.endpoint import client
from sgpipe.stages.endpoint.client import ChatEndpoint

Connect = Callable[..., ChatEndpoint]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(client, "_LONGEST_BACKOFF", 0.001)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def connect() -> Connect:
    def connect(
        url: str, model: str = "tiny-vlm", cache: Path | None = None, in_flight: int = 8, timeout: float = 20
    ) -> ChatEndpoint:
        return ChatEndpoint(url, model, Requests(in_flight=in_flight, timeout=timeout, retries=3), cache)

    return connect
