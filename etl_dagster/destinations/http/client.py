"""Sends requests, one at a time for each thread, and tries them again."""

from __future__ import annotations

import gzip
import queue
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from etl_dagster import __version__
from etl_dagster.destinations.http import signature
from etl_dagster.destinations.http.answers import describe, refusal
from etl_dagster.destinations.http.config import HttpDestinationConfig
from etl_dagster.destinations.http.connection import Connection
from etl_dagster.destinations.http.payload import Body
from etl_dagster.destinations.http.retry import (
    Patience,
    TryAgain,
    is_transient,
    parse_retry_after,
)
from etl_dagster.errors import DestinationError, DestinationUnreachable
from etl_dagster.model.schema import TableSchema

_CHECK_TIMEOUT_S: Final = 5.0
#: Saves most of what the default level saves, in a third of the time.
_GZIP_LEVEL: Final = 3


class HttpClient:
    """POST with retries. Safe for several threads.

    Raises:
        DestinationError: from any method, if the certificates can't be read, or the proxy that
            the environment names can't be used.
    """

    def __init__(self, config: HttpDestinationConfig) -> None:
        self._config = config
        self._closing = threading.Event()
        self._close_lock = threading.Lock()
        self._patience = Patience(config.max_attempts, self._closing)
        # A client for each connection, each used by one thread at a time, the last one first.
        # One client with as many connections would do, if httpcore 1.0.9 didn't sometimes close a
        # connection that it has given to a waiting request, which then hears nothing until it
        # times out (encode/httpcore#1110).
        self._connections: queue.LifoQueue[Connection | None] = queue.LifoQueue()
        for _ in range(config.max_connections):
            self._connections.put(None)

    def post(self, body: Body, schema: TableSchema) -> None:
        """Have the receiver take the body; once this returns it is durable there.

        Raises:
            DestinationUnreachable: no answer, or none that is final; what the receiver did is
                unknown.
            EtlError: it refused, see `answers`.
        """
        content = body.content
        headers = {"Content-Type": "application/json", "Idempotency-Key": body.key}
        if self._config.gzip:
            content = gzip.compress(content, _GZIP_LEVEL, mtime=0)
            headers["Content-Encoding"] = "gzip"
        what = f"POST {self._config.url}/{body.path}"
        status = self._patience.run(lambda: self._send(body.path, content, headers), what)
        if not 200 <= status < 300:
            raise refusal(status, what, body.key, schema)

    def check(self) -> None:
        """Check that a server is there and lets us in; changes nothing.

        Raises:
            DestinationUnreachable: no answer.
            DestinationError: it doesn't let us in.
        """
        timeout_s = min(self._config.timeout_s, _CHECK_TIMEOUT_S)
        url = self._config.url
        try:
            with self._connection() as connection:
                status = connection.options(url, timeout_s)
        except httpx.TransportError as error:
            raise DestinationUnreachable(
                f"{url}: {_reason(error, timeout_s)}{_by_way_of(url)}",
                solution="Check destination.url and that the server is up.",
            ) from None
        if status in (401, 403, 407):
            raise DestinationError(
                f"{url} answered {describe(status)}",
                solution="Check destination.token and destination.headers.",
            )

    def interrupt(self) -> None:
        """Let requests under way end, one way or the other, and begin nothing more."""
        self._closing.set()

    def close(self) -> None:
        """Let requests under way end, one way or the other, and try nothing again; idempotent."""
        self._closing.set()
        with self._close_lock:
            every = [self._connections.get() for _ in range(self._config.max_connections)]
            for connection in every:
                if connection is not None:
                    connection.close()
                self._connections.put(None)

    def _send(self, path: str, content: bytes, headers: Mapping[str, str]) -> int:
        """One try; returns a status that is final."""
        if self._config.hmac_secret is not None:
            secret = self._config.hmac_secret.get_secret_value()
            signed = signature.sign(secret, content, int(time.time()))
            headers = {**headers, signature.HEADER: signed}
        try:
            with self._connection() as connection:
                response = connection.post(f"{self._config.url}/{path}", content, headers)
        except httpx.TransportError as error:
            reason = f"{_reason(error, self._config.timeout_s)}{_by_way_of(self._config.url)}"
            raise TryAgain(reason) from error
        status = response.status_code
        if is_transient(status):
            wait_s = parse_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
            raise TryAgain(f"the server answered {describe(status)}", wait_s)
        return status

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """A connection for this thread alone; waits while all are in use, until one times out."""
        connection = self._connections.get()
        try:
            if self._closing.is_set():
                raise TryAgain("the destination is shut down")
            if connection is None:
                connection = self._open()
            yield connection
        finally:
            self._connections.put(connection)

    def _open(self) -> Connection:
        config = self._config
        headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        headers.setdefault("User-Agent", f"etl-dagster/{__version__}")
        if config.token is not None:
            headers["Authorization"] = f"Bearer {config.token.get_secret_value()}"
        try:
            client = httpx.Client(headers=headers, verify=self._tls, timeout=config.timeout_s)
        except (ImportError, ValueError) as error:
            # An unknown scheme, or a SOCKS proxy without its package. The text hides a password.
            raise DestinationError(
                f"the proxy of the environment can't be used: {error}",
                solution="Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY, name the server in "
                'NO_PROXY, or, for a SOCKS proxy: pip install "httpx[socks]".',
            ) from None
        return Connection(client, config.timeout_s)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return _tls(self._config)


def _tls(config: HttpDestinationConfig) -> ssl.SSLContext:
    if not config.verify or config.ca_file is None:
        return httpx.create_ssl_context(verify=config.verify)
    try:
        return ssl.create_default_context(cafile=str(config.ca_file))
    except OSError as error:  # also an ssl.SSLError
        raise DestinationError(
            f"{config.ca_file}: {error.strerror or 'holds no certificates'}",
            solution="Set destination.ca_file to a file with certificates in PEM form.",
        ) from None


def _by_way_of(url: str) -> str:
    """Which proxy of the environment (HTTP_PROXY and the like) is used, for people."""
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    # It may have a password in front of the host.
    host = proxy.rpartition("@")[2].rpartition("//")[2]
    return f" (by way of the proxy {host}, as HTTP_PROXY, HTTPS_PROXY or ALL_PROXY say)"


def _reason(error: httpx.TransportError, timeout_s: float) -> str:
    match error:
        case httpx.ConnectTimeout():
            return f"no connection in {timeout_s:g} s"
        case httpx.TimeoutException():
            return f"no answer in {timeout_s:g} s"
        case httpx.ConnectError():
            # The system's or OpenSSL's own words: refused, unknown host, untrusted certificate.
            return str(error) or "no connection"
        case httpx.RemoteProtocolError():
            return "the connection ended before the answer did"
    return f"the connection broke ({type(error).__name__})"
