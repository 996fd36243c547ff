"""One connection, on which an answer is whole in time or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import httpx

#: Bytes of a response's body to read: it is not used, but must be known to be whole.
_MAX_ANSWER_BYTES: Final = 1024**2


class AnswerTooSlow(httpx.ReadTimeout):
    """The answer had begun, and did not end in time."""


class Connection:
    """A client that is used by one thread at a time.

    httpx limits the wait for each part of an answer. A server that sends a byte now and then, or
    one informational answer (1xx) after the other, would never exceed that, and hold a table, and
    the end of a pipeline, for as long as it likes.

    Args:
        timeout_s: for the whole answer, from the moment at which the request was sent.
    """

    def __init__(self, client: httpx.Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._stream: Any = None

    def options(self, url: str, timeout_s: float) -> int:
        """The status of the answer to OPTIONS."""
        return self._ask("OPTIONS", url, b"", {}, timeout_s).status_code

    def post(self, url: str, content: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """The answer, whose body was read and is not kept.

        Raises:
            AnswerTooSlow: it was not whole in time.
            httpx.TransportError: anything else that can happen to a connection.
        """
        return self._ask("POST", url, content, headers, self._timeout_s)

    def close(self) -> None:
        self._client.close()

    def _ask(
        self, method: str, url: str, content: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> httpx.Response:
        with (
            self._cut_after(timeout_s) as extensions,
            self._client.stream(
                method,
                url,
                content=content,
                headers=headers,
                timeout=timeout_s,
                extensions=extensions,
            ) as response,
        ):
            _read_whole(response)
        return response

    @contextmanager
    def _cut_after(self, timeout_s: float) -> Iterator[dict[str, Any]]:
        """What a request must be given so that its answer ends in time; by force, if need be."""
        is_late = threading.Event()

        def cut() -> None:
            is_late.set()
            raw = None if self._stream is None else self._stream.get_extra_info("socket")
            if raw is not None:
                # Below TLS: a thread that reads finds the end. Closing would not wake it.
                with suppress(OSError):
                    socket.socket.shutdown(raw, socket.SHUT_RDWR)

        timer = threading.Timer(timeout_s, cut)
        timer.daemon = True

        def trace(event: str, facts: Mapping[str, Any]) -> None:
            # Source: HTTPX documentation, "Extensions", which lists the events.
            if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
                self._stream = facts["return_value"]
            elif event.endswith(".receive_response_headers.started"):
                timer.start()

        try:
            yield {"trace": trace}
        except httpx.TransportError as error:
            if is_late.is_set():
                raise AnswerTooSlow("the answer did not end in time") from error
            raise
        finally:
            timer.cancel()


def _read_whole(response: httpx.Response) -> None:
    """A server that died while it answered may not have stored everything."""
    length = 0
    for piece in response.iter_raw():
        length += len(piece)
        if length > _MAX_ANSWER_BYTES:
            return
