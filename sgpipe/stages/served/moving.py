"""Servers of an engine on a cluster, which may move, and become more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from sgpipe.stages.served.engines.addresses import read_urls
from sgpipe.stages.served.server import ChatServer, ServerGroup

_SECONDS = 2.0  # between looks at where they are


class MovingServers(ServerGroup):
    """See `ServerGroup`. `servers`: those that the file of the endpoint names."""

    def __init__(
        self,
        endpoint: str,
        new_server: Callable[[str], ChatServer],
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            endpoint: names the file.
            new_server: makes one of a URL.
            patience, say: as of `ServerGroup`.
        """
        super().__init__([new_server(url) for url in read_urls(endpoint)], patience, say)
        self._endpoint = endpoint
        self._new_server = new_server
        self._following: asyncio.Task[None] | None = None

    async def choose(self, check: Callable[[ChatServer], Awaitable[None]]) -> ChatServer:
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
        return await super().choose(check)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_SECONDS)
            with suppress(OSError):
                self.update(read_urls(self._endpoint))

    def update(self, urls: Sequence[str]) -> None:
        """Send requests to the servers at these URLs alone."""
        earlier = {server.url: server for server in self.servers}
        if set(urls) == set(earlier):
            return
        for url in set(earlier) - set(urls):
            self._forget(earlier[url])
        self.servers = [earlier.get(url) or self._new_server(url) for url in urls]
        self._changed.set()

    def _forget(self, server: ChatServer) -> None:
        """Have requests that it does not answer sent to others."""
        server.put_away("it has ended")
        watch = self._watches.pop(server, None)
        if watch is not None:
            watch.cancel()
