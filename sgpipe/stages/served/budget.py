"""Requests are sent while the budget of a run lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sgpipe.errors import EngineError
from sgpipe.stages.served.answers import RequestCache

_SECONDS_BETWEEN_LOOKS = 0.1  # at what others have paid


@asynccontextmanager
async def within_budget(cache: RequestCache, turn: asyncio.Lock) -> AsyncIterator[None]:
    """Hold a request back while those under way may use up the budget.

    Each is expected to cost what the dearest one did, so the first goes alone, and only requests
    that are dearer than all before can exceed the budget.

    Args:
        cache: counts the requests of all processes of this machine.
        turn: of the requests of this process; one at a time looks at what others have paid.

    Raises:
        EngineError: the budget is used up, and no request is under way.
    """
    if cache.spending.max_cost is None:
        yield
        return
    async with turn:
        while not cache.reserve_request():
            if cache.requests_under_way():
                await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)
            elif cache.reserve_request():  # the last one has ended since
                break
            else:
                raise EngineError(cache.spending.used_up(cache.cost()))
    try:
        yield
    finally:
        cache.end_request()
