"""A server that takes small bodies only, one that never answers, a proxy that isn't there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from etl_dagster.demo.ports import free_port
from etl_dagster.destinations.http import HttpDestination
from etl_dagster.errors import DestinationUnreachable, TableWriteFailed
from etl_dagster.testing.changes import chunk
from tests.integration.test_http_destination import VISITS, visits
from tests.support.leaks import make_secret


class Server(ThreadingHTTPServer):
    """Answers 413 to bodies above `limit`, 408 to the first `impatient` ones; may hang."""

    daemon_threads = True

    def __init__(self, limit: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.limit = limit
        self.impatient = 0
        self.refused = 0
        self.taken: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.sizes: list[int] = []
        self.asked = threading.Event()
        self.answers = threading.Event()
        self.answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Idempotency-Key"])
        self.server.asked.set()
        self.server.answers.wait(30)
        if self.server.impatient:
            self.server.impatient -= 1
            self.answer(408)
        elif len(content) > self.server.limit:
            self.server.refused += 1
            self.answer(413)
        else:
            self.server.taken.append(json.loads(content))
            self.server.sizes.append(len(content))
            self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Server]:
    with Server(3000) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield serving
        serving.answers.set()
        serving.shutdown()
        thread.join()


def test_bodies_are_halved_until_the_server_accepts_them_and_the_size_is_remembered(
    receiver: Server,
) -> None:
    sender = HttpDestination(receiver.url)
    sender.write_events(visits(*range(500)))
    assert [int(event["row"]["at"]) for body in receiver.taken for event in body["events"]] == list(
        range(500)
    )
    refused = receiver.refused
    assert refused > 0

    receiver.taken.clear()
    sender.write_table_rows(
        VISITS, chunk("copy", 0, VISITS, [{"page": "/", "at": n} for n in range(500)])
    )
    assert [int(row["at"]) for body in receiver.taken for row in body["rows"]] == list(range(500))
    assert [body["part"] for body in receiver.taken] == list(range(len(receiver.taken)))
    assert [body["is_last_part"] for body in receiver.taken] == (
        [False] * (len(receiver.taken) - 1) + [True]
    )
    sender.write_events(visits(*range(500, 600)))
    sender.shutdown()
    # What stands in front of the rows isn't counted, so one more may have been too much.
    assert receiver.refused <= refused + 1
    assert len(set(receiver.keys)) == len(receiver.keys)


def test_parts_that_were_halved_are_numbered_without_a_gap(receiver: Server) -> None:
    sender = HttpDestination(receiver.url)
    sender.write_table_rows(
        VISITS, chunk("copy", 0, VISITS, [{"page": "/", "at": n} for n in range(500)])
    )
    sender.shutdown()

    assert receiver.refused > 0
    assert [int(row["at"]) for body in receiver.taken for row in body["rows"]] == list(range(500))
    assert [body["part"] for body in receiver.taken] == list(range(len(receiver.taken)))
    assert [body["is_last_part"] for body in receiver.taken].count(True) == 1
    assert receiver.taken[-1]["is_last_part"]
    assert len(set(receiver.keys)) == len(receiver.keys)


def test_a_single_row_that_is_too_large_names_the_setting(receiver: Server) -> None:
    receiver.limit = 10
    sender = HttpDestination(receiver.url)

    with pytest.raises(TableWriteFailed, match="413") as failed:
        sender.write_events(visits(1, 2))
    sender.shutdown()

    assert "max_body_bytes" in failed.value.solution


def test_a_request_that_the_server_timed_out_is_repeated(receiver: Server) -> None:
    receiver.impatient = 2
    sender = HttpDestination(receiver.url)
    sender.write_events(visits(1))
    sender.shutdown()

    assert len(receiver.keys) == 3
    assert len(set(receiver.keys)) == 1
    assert len(receiver.taken) == 1


def begin_writing(sender: HttpDestination) -> tuple[threading.Thread, list[DestinationUnreachable]]:
    """Write many bodies in a thread; with what it fails with."""
    failures: list[DestinationUnreachable] = []

    def write() -> None:
        try:
            sender.write_events(visits(*range(500)))
        except DestinationUnreachable as error:
            failures.append(error)

    writing = threading.Thread(target=write)
    writing.start()
    return writing, failures


def test_an_interrupted_destination_retries_nothing(receiver: Server) -> None:
    """A stop is bounded by one request, however many tries and bodies there were to come."""
    receiver.answers.clear()
    sender = HttpDestination(receiver.url, timeout_s=3, max_attempts=20, max_body_bytes=1024)
    writing, failures = begin_writing(sender)
    assert receiver.asked.wait(30)
    sender.interrupt()
    writing.join(30)

    assert not writing.is_alive()
    assert [error.retryable for error in failures] == [True]
    assert len(receiver.keys) == 1


def test_bodies_left_unsent_by_a_stop_are_sent_later_and_accepted_ones_are_recognised(
    receiver: Server,
) -> None:
    receiver.answers.clear()
    sender = HttpDestination(receiver.url, max_body_bytes=1024)
    writing, failures = begin_writing(sender)
    assert receiver.asked.wait(30)
    sender.interrupt()
    receiver.answers.set()
    writing.join(30)
    assert [error.reason.partition(": ")[2] for error in failures] == [
        "not sent, because the pipeline stops"
    ]
    [first], [key] = receiver.taken, receiver.keys

    again = HttpDestination(receiver.url, max_body_bytes=1024)
    again.write_events(visits(*range(500)))
    again.shutdown()

    assert (receiver.taken[1], receiver.keys[1]) == (first, key)
    sent = [event["row"]["at"] for body in receiver.taken[1:] for event in body["events"]]
    assert [int(at) for at in sent] == list(range(500))


def test_an_unreachable_proxy_is_named_without_its_password(
    receiver: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    secret = make_secret()
    monkeypatch.setenv("HTTP_PROXY", f"http://user:{secret}@127.0.0.1:{port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    sender = HttpDestination("http://receiver.example", max_attempts=1)

    with pytest.raises(DestinationUnreachable, match=f"proxy 127.0.0.1:{port}") as failed:
        sender.write_events(visits(1))
    with pytest.raises(DestinationUnreachable, match=f"proxy 127.0.0.1:{port}"):
        sender.check()
    sender.shutdown()

    assert secret not in failed.value.reason
