"""Endpoints on this machine that pause for no longer than a test can wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sgpipe.recipe import Requests
from sgpipe.stages.endpoint import CacheFolder, ChatEndpoint

Connect = Callable[..., ChatEndpoint]


@pytest.fixture
def connect(no_pauses: None) -> Connect:
    def connect(
        url: str, model: str = "tiny-vlm", cache: Path | None = None, in_flight: int = 8, timeout: float = 20
    ) -> ChatEndpoint:
        requests = Requests(in_flight=in_flight, timeout=timeout, retries=3)
        return ChatEndpoint(url, model, requests, CacheFolder(cache) if cache else None)

    return connect
