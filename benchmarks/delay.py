"""A TCP proxy that adds latency, as a network between two data centers does, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from psycopg.conninfo import conninfo_to_dict, make_conninfo

_PIECE = 256 * 1024
#: Pieces under way in one direction of a connection.
_UNDER_WAY = 64


@contextlib.contextmanager
def delayed(dsn: str, one_way_s: float) -> Iterator[str]:
    """The DSN of a proxy in front of a server; what is sent either way arrives this much later."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    proxy = _Proxy(dsn, one_way_s)
    try:
        port = asyncio.run_coroutine_threadsafe(proxy.listen(), loop).result(60)
        yield make_conninfo(dsn, host="127.0.0.1", port=port)
    finally:
        asyncio.run_coroutine_threadsafe(proxy.end(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Proxy:
    def __init__(self, dsn: str, one_way_s: float) -> None:
        parameters = conninfo_to_dict(dsn)
        self._host, self._port = str(parameters["host"]), int(str(parameters["port"]))
        self._one_way_s = one_way_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def listen(self) -> int:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_PIECE)
        return int(self._listener.sockets[0].getsockname()[1])

    async def end(self) -> None:
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._host.startswith("/"):
            socket = f"{self._host}/.s.PGSQL.{self._port}"
            there = await asyncio.open_unix_connection(socket, limit=_PIECE)
        else:
            there = await asyncio.open_connection(self._host, self._port, limit=_PIECE)
        for source, target in ((reader, there[1]), (there[0], writer)):
            pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDER_WAY)
            for work in (self._take(source, pieces), self._give(pieces, target)):
                task = asyncio.ensure_future(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _take(
        self, source: asyncio.StreamReader, pieces: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """Note when each piece came; an empty one is the end."""
        piece = b"first"
        while piece:
            try:
                piece = await source.read(_PIECE)
            except OSError:
                piece = b""
            await pieces.put((asyncio.get_running_loop().time() + self._one_way_s, piece))

    async def _give(
        self, pieces: asyncio.Queue[tuple[float, bytes]], target: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                at, piece = await pieces.get()
                await asyncio.sleep(max(at - asyncio.get_running_loop().time(), 0.0))
                if not piece:
                    break
                target.write(piece)
                await target.drain()
        target.close()
