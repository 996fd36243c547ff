"""A TCP proxy in front of a server, with which a test breaks connections as networks do."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from psycopg.conninfo import conninfo_to_dict, make_conninfo

T = TypeVar("T")

_PIECE = 64 * 1024
_SLOW_PIECES_PER_S = 20


@dataclass(eq=False)
class _Link:
    """A client's connection and the one that was made for it."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    #: Whether everything that arrives is dropped, in either direction.
    is_forgotten: bool = False


class Proxy:
    """Listens while it is open, on a port of its own; at first everything flows.

    A command returns once it holds. It does so until `flow`, for the connections of then and for
    new ones; `cut` and `forget` concern only those of then.

    Args:
        dsn: of the server behind it.
        host: the address to listen on.
    """

    def __init__(self, dsn: str, host: str = "127.0.0.1") -> None:
        self._dsn = dsn
        self._host = host
        self._parameters = conninfo_to_dict(dsn)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._flows = asyncio.Event()
        self._bytes_per_s: float | None = None
        self._refuses = False
        #: Connections that were refused so far.
        self.refused = 0
        #: Connections that wait for it to flow, before they lead anywhere.
        self.held = 0
        self._links: set[_Link] = set()
        #: All that must have ended when the loop does.
        self._pumps: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        self.flow()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.flow()
        self._do(self._refuse())
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def dsn(self) -> str:
        """As the server's, through the proxy."""
        return make_conninfo(self._dsn, host=self._host, port=self._port)

    # -- commands ------------------------------------------------------------------------------

    def flow(self) -> None:
        """Let everything pass again."""
        self._do(self._flow())

    def stall(self) -> None:
        """Let nothing pass, either way. What was sent meanwhile arrives when it flows again."""
        self._do(self._stall())

    def slow(self, bytes_per_s: float) -> None:
        """Let so much pass, of each connection and either way."""
        self._do(self._slow(bytes_per_s))

    def half_open(self) -> None:
        """End the server's side of all connections; their clients learn of it when it flows again.

        New ones wait until then.
        """
        self._do(self._half_open())

    def refuse(self) -> None:
        """End all connections, and new ones at once, as a balancer without a server does."""
        self._do(self._refuse())

    def cut(self) -> None:
        """End all connections, as a server that crashes does."""
        self._do(self._cut())

    def forget(self) -> None:
        """Lose all that the connections of now bring, and leave them open, as a firewall does."""
        self._do(self._forget())

    # -- in the loop's thread --------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._accept, self._host, 0, limit=_PIECE)
        self._port = self._listener.sockets[0].getsockname()[1]

    async def _flow(self) -> None:
        self._bytes_per_s = None
        self._refuses = False
        self._flows.set()

    async def _stall(self) -> None:
        self._flows.clear()

    async def _half_open(self) -> None:
        self._flows.clear()
        for link in self._links:
            link.server.transport.abort()

    async def _slow(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s

    async def _refuse(self) -> None:
        self._refuses = True
        await self._cut()

    async def _cut(self) -> None:
        for link in [*self._links]:
            link.server.transport.abort()
            link.client.transport.abort()

    async def _forget(self) -> None:
        for link in self._links:
            link.is_forgotten = True

    async def _end(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = str(self._parameters["host"]), self._parameters["port"]
        if self._refuses:
            self.refused += 1
            writer.transport.abort()
            return
        try:
            if not self._flows.is_set():
                self.held += 1
            await self._flows.wait()
            if host.startswith("/"):
                there = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}", limit=_PIECE)
            else:
                there = await asyncio.open_connection(host, int(str(port)), limit=_PIECE)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, there[1])
        self._links.add(link)
        for pump in (self._pump(link, reader, there[1]), self._pump(link, there[0], writer)):
            task = asyncio.ensure_future(pump)
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Move what comes until one side ends, and end the other then."""
        with contextlib.suppress(OSError):
            while True:
                rate = self._bytes_per_s
                size = _PIECE if rate is None else max(1, int(rate / _SLOW_PIECES_PER_S))
                piece = await reader.read(size)
                if not piece:
                    break
                if rate is not None:
                    await asyncio.sleep(len(piece) / rate)
                await self._flows.wait()
                if not link.is_forgotten:
                    writer.write(piece)
                    await writer.drain()
        # The end of one side is something that passes, too.
        await self._flows.wait()
        writer.close()
        self._links.discard(link)
