"""A server for HTTP destinations, in a process of its own, that can be told to misbehave.

    python -m tests.support.http_receiver STATE [--port N] [--token T] [--hmac-secret S]
        [--certificate PEM] [--chaos P]

It prints ``listening PORT``. Its state is a SQLite file, so it can be killed at any moment and
started again. `tests.support.receiver` starts it and asks it. It uses nothing of the package that
it tests.

A *fault* is what one of the next requests gets in place of its answer: a JSON object with

==========  =======================================================================================
`answer`    ``status`` (with `status`, `headers`), ``half`` (of a body), ``torn`` (half a status
            line), ``nothing``, ``late`` (after `/control/release`, or never), ``die``
`when`      ``before`` the body is looked at, ``inside`` the transaction, or ``after`` its commit
`path`      how the request's path begins; any, if it is missing
`table`     which table it is for; any, if it is missing
==========  =======================================================================================
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import hmac
import json
import os
import random
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.receiver_state import ReceiverState, Refused

Fault = dict[str, Any]

_CHAOS: tuple[Fault, ...] = (
    {"answer": "status", "status": 500, "when": "before"},
    {"answer": "status", "status": 503, "when": "after"},
    {"answer": "status", "status": 429, "headers": {"Retry-After": "0"}, "when": "before"},
    {"answer": "nothing", "when": "before"},
    {"answer": "nothing", "when": "after"},
    {"answer": "half", "when": "after"},
    {"answer": "torn", "when": "after"},
    {"answer": "die", "when": "inside"},
    {"answer": "die", "when": "after"},
)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(("127.0.0.1", options.port), _Handler)
        self.options = options
        self.state = ReceiverState(options.state)
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[dict[str, Any]] = []
        self.released = threading.Event()
        self.running = 0
        self.most_running = 0
        self._random = random.Random()

    def next_fault(self, path: str, table: str) -> Fault | None:
        with self.lock:
            for index, fault in enumerate(self.faults):
                if path.startswith(fault.get("path", "")) and fault.get("table", table) == table:
                    return self.faults.pop(index)
        if self._random.random() < self.options.chaos:
            return self._random.choice(_CHAOS)
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The other side may be killed at any moment."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    # -- for the destination ---------------------------------------------------------------------

    def do_OPTIONS(self) -> None:
        self._answer(204 if self._knows_token() else 401)

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path.startswith("control"):
            self._control(path, content)
            return
        with self.server.lock:
            self.server.running += 1
            self.server.most_running = max(self.server.most_running, self.server.running)
        try:
            self._receive(path, content)
        finally:
            with self.server.lock:
                self.server.running -= 1

    def _receive(self, path: str, content: bytes) -> None:
        key = self.headers.get("Idempotency-Key", "")
        seen = {"path": path, "key": key, "bytes": len(content), "headers": dict(self.headers)}
        if not self._knows_token() or not self._is_signed(content):
            self._note(seen, 401)
            self._answer(401)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        body = json.loads(content)
        seen |= {"body": body, "plain_bytes": len(content)}
        table = body["table"]["table"]
        paths = {
            "rows": "rows",
            "events": "events",
            f"tables/{table}/drop-for-copy": "drop-for-copy",
        }
        if paths.get(path) != body["kind"]:
            self._note(seen, 404)
            self._answer(404)
            return
        fault = self.server.next_fault(path, table)
        when = fault["when"] if fault else ""
        if fault and when == "before":
            self._note(seen, fault.get("status"))
            self._misbehave(fault)
            return

        def before_commit() -> None:
            if fault and when == "inside":
                self._misbehave(fault)

        try:
            status = 200 if self.server.state.apply(key, body, before_commit) else 208
        except Refused as refused:
            status = refused.status
        self._note(seen, fault.get("status") if fault else status)
        if fault and when == "after":
            self._misbehave(fault)
            return
        self._answer(status)

    def _misbehave(self, fault: Fault) -> None:
        match fault["answer"]:
            case "die":
                os._exit(9)
            case "status":
                self._answer(fault["status"], fault.get("headers", {}))
                return
            case "half":
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"ok": ')
            case "torn":
                self.wfile.write(b"HTTP/1.1 20")
            case "late":
                self.server.released.wait(30)
                self._answer(200)
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def _knows_token(self) -> bool:
        token = self.server.options.token
        return token is None or self.headers.get("Authorization") == f"Bearer {token}"

    def _is_signed(self, content: bytes) -> bool:
        """As the documentation says for users without this package."""
        secret = self.server.options.hmac_secret
        if secret is None:
            return True
        header = self.headers.get("Etl-Signature", "t=0,v1=")
        moment, given = (part.partition("=")[2] for part in header.split(","))
        signed = hmac.new(secret.encode(), f"{moment}.".encode() + content, hashlib.sha256)
        is_recent = abs(time.time() - int(moment)) < 300
        return hmac.compare_digest(signed.hexdigest(), given) and is_recent

    def _note(self, seen: dict[str, Any], status: int | None) -> None:
        if not self.server.options.chaos:  # a long run doesn't need them
            with self.server.lock:
                self.server.requests.append({**seen, "status": status})

    # -- for the test ----------------------------------------------------------------------------

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match url.path:
            case "/rows":
                self._json(self.server.state.rows(parse_qs(url.query)["table"][0]))
            case "/changelog":
                self._json(self.server.state.changelog())
            case "/requests":
                self._json(self.server.requests)
            case "/most_running":
                self._json(self.server.most_running)
            case _:
                self._answer(404)

    def _control(self, path: str, content: bytes) -> None:
        if path == "control/release":
            self.server.released.set()
        elif path == "control/forget":
            self.server.state.forget()
            self.server.requests.clear()
        else:
            with self.server.lock:
                self.server.faults += json.loads(content)
        self._answer(200)

    # -- HTTP ------------------------------------------------------------------------------------

    def _json(self, value: Any) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent: the requests are kept."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("state")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token")
    parser.add_argument("--hmac-secret")
    parser.add_argument("--certificate")
    parser.add_argument("--chaos", type=float, default=0.0)
    server = Server(parser.parse_args())
    if server.options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server.options.certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print("listening", server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
