"""Whatever a server answers, in the end it has what it was sent, once."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from etl_dagster.destinations.http import HttpDestination
from etl_dagster.errors import (
    DestinationError,
    DestinationUnreachable,
    InvalidState,
    Superseded,
    TableWriteFailed,
)
from etl_dagster.model.events import ChunkId, TableRows
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import (
    ORDERS,
    PRICES,
    READINGS,
    VISITS,
    Transactions,
    arrow_rows,
    batch,
    chunk,
    end_of_copy,
    insert,
)
from tests.support.leaks import make_secret
from tests.support.receiver import Receiver

SECRET = make_secret("s3cr3t-Pa55")
WRONG = make_secret("wrong")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with Receiver(tmp_path) as running:
        yield running


def destination(receiver: Receiver, **settings: Any) -> HttpDestination:
    made = HttpDestination(receiver.url, **settings)
    made.startup(MemoryStore())
    return made


def visits(*numbers: int, first_lsn: int = 1000) -> Any:
    """A transaction that inserts rows without a key, so that a second delivery would show."""
    rows = [insert(VISITS, page="/", at=number) for number in numbers]
    return batch(Transactions(first_lsn).commit(*rows))


def arrived(receiver: Receiver) -> list[int]:
    return [int(row["at"]) for row in receiver.rows("public.visits") or []]


def statuses(receiver: Receiver) -> list[Any]:
    return [request["status"] for request in receiver.requests()]


# -- answers that time may cure ------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "answer",
    [
        {"answer": "status", "status": 500},
        {"answer": "status", "status": 503},
        {"answer": "status", "status": 429, "headers": {"Retry-After": "0"}},
        {
            "answer": "status",
            "status": 429,
            "headers": {"Retry-After": "Wed, 01 May 2024 1:00 GMT"},
        },
        {"answer": "half"},
        {"answer": "torn"},
        {"answer": "nothing"},
    ],
    ids=["500", "503", "429", "429-date", "half", "torn", "nothing"],
)
def test_a_change_arrives_once_though_the_answer_is(
    receiver: Receiver, answer: dict[str, Any], when: str
) -> None:
    sender = destination(receiver)
    receiver.misbehave({**answer, "when": when})

    sender.write_events(visits(1, 2, 3))

    assert arrived(receiver) == [1, 2, 3]
    keys = {request["key"] for request in receiver.requests()}
    assert (len(receiver.requests()), len(keys)) == (2, 1)
    sender.shutdown()


def test_an_answer_that_comes_too_late_is_not_waited_for(receiver: Receiver) -> None:
    sender = destination(receiver, timeout_s=0.3)
    receiver.misbehave({"answer": "late", "when": "after"})

    sender.write_events(visits(1))

    assert arrived(receiver) == [1]
    first, *later = statuses(receiver)
    assert first is None
    # On a busy machine the second answer may be too late, too.
    assert set(later) in ({208}, {None, 208})
    receiver.release()


def test_a_server_that_never_answers_in_time_is_unreachable(receiver: Receiver) -> None:
    sender = destination(receiver, timeout_s=0.2, max_attempts=2)
    receiver.misbehave(*[{"answer": "late", "when": "before"}] * 2)

    with pytest.raises(DestinationUnreachable, match=r"no answer in 0\.2 s; tried 2 times"):
        sender.write_events(visits(1))
    receiver.release()


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
        (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"a"),
    ],
    ids=["header", "informational", "body"],
)
def test_an_answer_without_an_end_is_not_waited_for(first: bytes, piece: bytes) -> None:
    """A part of it always arrives before the timeout for the next part."""

    def answer() -> None:
        with listener.accept()[0] as connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(first)
            while True:
                connection.sendall(piece)
                time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=answer)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sender = HttpDestination(url, timeout_s=0.3, max_attempts=1)
        with pytest.raises(DestinationUnreachable, match=r"no answer in 0\.3 s"):
            sender.write_events(visits(1))
        server.join(30)
    assert not server.is_alive()


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_a_server_that_dies_has_the_change_once_it_lives_again(
    receiver: Receiver, when: str
) -> None:
    sender = destination(receiver, max_attempts=2)
    receiver.misbehave({"answer": "die", "when": when})
    with pytest.raises(DestinationUnreachable, match="tried 2 times"):
        sender.write_events(visits(1, 2))
    assert receiver.wait_until_dead() == 9

    receiver.start()
    assert arrived(receiver) == ([1, 2] if when == "after" else [])
    sender.write_events(visits(1, 2))

    assert arrived(receiver) == [1, 2]


def test_a_server_that_restarts_in_time_goes_unnoticed(receiver: Receiver) -> None:
    sender = destination(receiver, max_attempts=20)
    receiver.misbehave({"answer": "die", "when": "after"})

    writing = threading.Thread(target=sender.write_events, args=[visits(1, 2)])
    writing.start()
    receiver.wait_until_dead()
    receiver.start()
    writing.join(30)

    assert not writing.is_alive()
    assert arrived(receiver) == [1, 2]


def test_a_refused_connection_is_an_unreachable_destination() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    sender = HttpDestination(f"http://127.0.0.1:{port}/in", max_attempts=1)

    with pytest.raises(DestinationUnreachable, match=f"127.0.0.1:{port}/in/events: .*refused"):
        sender.write_events(visits(1))
    with pytest.raises(DestinationUnreachable, match=f"127.0.0.1:{port}/in: .*refused"):
        sender.check()


# -- answers that are final ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 412, 418, 422, 301])
def test_no_other_status_is_retried(receiver: Receiver, status: int) -> None:
    sender = destination(receiver)
    receiver.misbehave({"answer": "status", "status": status, "when": "before"})

    with pytest.raises(DestinationError, match=str(status)):
        sender.write_events(visits(1))

    assert statuses(receiver) == [status]


def test_one_refused_table_leaves_the_others_exactly_once(receiver: Receiver) -> None:
    """The pipeline writes the batch again without the table; what was taken is recognised."""
    sender = destination(receiver)
    events = batch(
        Transactions().commit(
            insert(ORDERS, id=1), insert(VISITS, page="/", at=1), insert(VISITS, page="/", at=2)
        )
    )
    receiver.misbehave(
        {"answer": "status", "status": 422, "when": "before", "table": "public.orders"}
    )

    with pytest.raises(TableWriteFailed, match=r"422 .*public\.orders") as caught:
        sender.write_events(events)
    assert caught.value.table_id == ORDERS.id
    sender.write_events(visits(1, 2))

    assert receiver.rows("public.orders") is None
    assert len(arrived(receiver)) == 2


def test_a_failure_of_all_tables_counts_more_than_that_of_one(receiver: Receiver) -> None:
    sender = destination(receiver)
    changes = Transactions().commit(insert(ORDERS, id=1), insert(VISITS, page="/", at=1))
    receiver.misbehave(
        {"answer": "status", "status": 422, "when": "before", "table": "public.orders"},
        {"answer": "status", "status": 412, "when": "before", "table": "public.visits"},
    )

    with pytest.raises(Superseded):
        sender.write_events(batch(changes))


def test_a_drop_that_the_server_answers_with_404_is_an_error(receiver: Receiver) -> None:
    sender = destination(receiver)
    receiver.misbehave({"answer": "status", "status": 404, "when": "before", "path": "tables"})

    with pytest.raises(DestinationError, match="404"):
        sender.drop_table_for_copy(ORDERS)


# -- copies --------------------------------------------------------------------------------------


def test_a_large_chunk_is_sent_in_parts(receiver: Receiver) -> None:
    sender = destination(receiver, max_body_bytes=2000)
    rows = [{"page": "/", "at": number} for number in range(500)]
    sender.drop_table_for_copy(VISITS)
    sender.write_table_rows(VISITS, chunk("copy", 0, VISITS, rows))
    assert receiver.rows("public.visits") is None

    sender.write_table_rows(VISITS, end_of_copy("copy"))

    assert arrived(receiver) == list(range(500))
    parts = [r for r in receiver.requests() if r["path"] == "rows"]
    assert len(parts) > 5
    assert max(part["bytes"] for part in parts) < 3500


def test_a_chunk_whose_delivery_broke_off_counts_as_it_is_delivered_the_second_time(
    receiver: Receiver,
) -> None:
    """Rows may have come and gone in between, so parts of the first delivery must not stay."""

    def failing() -> Iterator[pa.RecordBatch]:
        yield arrow_rows(VISITS, [{"page": "/", "at": number} for number in range(100)])
        raise ConnectionError("the source went away")

    sender = destination(receiver, max_body_bytes=1024)
    with pytest.raises(ConnectionError):
        sender.write_table_rows(VISITS, TableRows("copy", failing(), ChunkId("copy", 0)))
    assert len(receiver.requests()) > 1

    rows = [{"page": "/", "at": number} for number in range(50, 120)]
    sender.write_table_rows(VISITS, chunk("copy", 0, VISITS, rows))
    sender.write_table_rows(VISITS, end_of_copy("copy"))

    assert arrived(receiver) == list(range(50, 120))


def test_parts_that_get_lost_are_sent_again(receiver: Receiver) -> None:
    sender = destination(receiver, max_body_bytes=1024)
    receiver.misbehave(
        *[{"answer": "nothing", "when": when, "path": "rows"} for when in ("before", "after")]
    )
    rows = [{"page": "/", "at": number} for number in range(100)]

    sender.write_table_rows(VISITS, chunk("copy", 0, VISITS, rows))
    sender.write_table_rows(VISITS, end_of_copy("copy"))

    assert arrived(receiver) == list(range(100))


def test_a_chunk_of_an_older_copy_is_refused(receiver: Receiver) -> None:
    sender = destination(receiver)
    sender.write_table_rows(VISITS, chunk("new", 0, VISITS, []))
    sender.drop_table_for_copy(VISITS)

    with pytest.raises(InvalidState, match=r"newer copy of public\.visits"):
        sender.write_table_rows(VISITS, chunk("new", 1, VISITS, [{"page": "/", "at": 1}]))


# -- several tables ------------------------------------------------------------------------------


def test_tables_are_sent_at_once_and_each_in_order(receiver: Receiver) -> None:
    """Both answers are held back until both requests are there."""
    sender = destination(receiver, max_body_bytes=1024)
    changes = Transactions().commit(
        *(insert(VISITS, page="/", at=number) for number in range(100)),
        *(insert(PRICES, sku=str(number), region=1, price=number) for number in range(100)),
    )
    receiver.misbehave(
        {"answer": "late", "when": "after", "table": "public.visits"},
        {"answer": "late", "when": "after", "table": "public.prices"},
    )
    writing = threading.Thread(target=sender.write_events, args=[batch(changes)])
    writing.start()
    while receiver.most_requests_at_once() < 2:
        assert writing.is_alive()
    receiver.release()
    writing.join(30)

    assert arrived(receiver) == list(range(100))
    assert [row["price"] for row in receiver.rows("public.prices") or []] == list(range(100))


@pytest.mark.parametrize("bound", [1, 2])
def test_connections_are_bounded_over_copies_and_streams(receiver: Receiver, bound: int) -> None:
    sender = destination(receiver, max_connections=bound, max_body_bytes=1024)
    changes = Transactions().commit(
        *(insert(READINGS, sensor="a", value=number) for number in range(100)),
        *(insert(PRICES, sku=str(number), region=1, price=number) for number in range(100)),
    )
    rows = [{"page": "/", "at": number} for number in range(100)]
    receiver.misbehave(*[{"answer": "late", "when": "after"}] * bound)
    with ThreadPoolExecutor(4) as pool:
        writes = [
            pool.submit(sender.write_table_rows, VISITS, chunk("copy", index, VISITS, rows))
            for index in range(3)
        ]
        writes.append(pool.submit(sender.write_events, batch(changes)))
        while receiver.most_requests_at_once() < bound:
            assert not all(write.done() for write in writes)
        receiver.release()
    for write in writes:
        write.result()

    assert len(receiver.requests()) > 20
    assert receiver.most_requests_at_once() == bound


# -- who is there --------------------------------------------------------------------------------


def test_token_headers_signature_and_compression_reach_the_server(tmp_path: Path) -> None:
    with Receiver(tmp_path, "--token", SECRET, "--hmac-secret", SECRET) as receiver:
        sender = destination(
            receiver, token=SECRET, hmac_secret=SECRET, gzip=True, headers={"X-Team": "data"}
        )
        sender.check()
        sender.write_events(visits(*range(100)))

        assert arrived(receiver) == list(range(100))
        [request] = receiver.requests()
        assert request["headers"]["X-Team"] == "data"
        assert request["headers"]["User-Agent"].startswith("etl-dagster/")
        assert request["bytes"] * 5 < request["plain_bytes"]


@pytest.mark.parametrize("settings", [{"token": WRONG}, {"hmac_secret": WRONG}, {}])
def test_wrong_credentials_are_an_error_and_no_secret_is_logged(
    tmp_path: Path, settings: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Receiver(tmp_path, "--token", SECRET, "--hmac-secret", SECRET) as receiver:
        known = {"token": SECRET, "hmac_secret": SECRET, "headers": {"X-Api-Key": SECRET}}
        receiver.misbehave({"answer": "nothing", "when": "before"})
        destination(receiver, **known).write_events(visits(1))
        sender = destination(receiver, **(known | settings if settings else {}))
        with pytest.raises(DestinationError, match="401") as caught:
            sender.write_events(visits(2))

    assert not caught.value.retryable
    texts = [caught.value.reason, caught.value.solution, caplog.text]
    texts += [json.dumps(vars(record), default=str) for record in caplog.records]
    assert caplog.records
    assert not [text for text in texts if SECRET in text]


def test_a_check_names_a_server_that_denies_access_and_changes_nothing(tmp_path: Path) -> None:
    with Receiver(tmp_path, "--token", SECRET) as receiver:
        assert destination(receiver, token=SECRET).check() == f"{receiver.url} answers"
        with pytest.raises(DestinationError, match="401"):
            destination(receiver, token=WRONG).check()
        assert receiver.requests() == []


def test_a_certificate_is_checked(tmp_path: Path) -> None:
    pem, other = tmp_path / "server.pem", tmp_path / "other.pem"
    for file in (pem, other):
        command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", f"{file}.key", "-out", f"{file}.crt"]
        subprocess.run([*command.split(), *names, *files], check=True, capture_output=True)
        file.write_text(Path(f"{file}.key").read_text() + Path(f"{file}.crt").read_text())
    with Receiver(tmp_path, "--certificate", str(pem)) as receiver:
        destination(receiver, ca_file=f"{pem}.crt").write_events(visits(1))
        destination(receiver, verify=False).write_events(visits(2, first_lsn=2000))
        for settings in ({}, {"ca_file": f"{other}.crt"}):
            with pytest.raises(DestinationUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
                destination(receiver, max_attempts=1, **settings).write_events(visits(3))

        assert arrived(receiver) == [1, 2]


# -- the end -------------------------------------------------------------------------------------


def test_a_destination_that_shuts_down_retries_nothing(receiver: Receiver) -> None:
    sender = destination(receiver, max_attempts=20)
    receiver.misbehave(*[{"answer": "status", "status": 500, "when": "before"}] * 100)
    failures: list[Exception] = []

    def write() -> None:
        try:
            sender.write_events(visits(1))
        except DestinationUnreachable as error:
            failures.append(error)

    writing = threading.Thread(target=write)
    writing.start()
    while not receiver.requests():
        assert writing.is_alive()
    sender.shutdown()
    sender.shutdown()
    writing.join(30)

    assert len(failures) == 1
    assert len(receiver.requests()) < 20


def test_one_request_carries_one_body_even_if_it_is_sent_twice(receiver: Receiver) -> None:
    sender = destination(receiver, gzip=True)
    receiver.misbehave({"answer": "status", "status": 500, "when": "before"})

    sender.write_events(visits(1))

    first, second = receiver.requests()
    assert (first["key"], first["body"]) == (second["key"], second["body"])
    assert httpx.codes.is_success(second["status"])
