"""The stream of a slot over a connection whose every byte is the test's, and by its clock."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import pq

from etl_dagster.errors import SourceSilent, SourceUnreachable
from etl_dagster.lsn import Lsn
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.source.stream import ReplicationStream
from tests.support.scripted import ManualClock, config, transaction
from tests.support.waiting import wait_until
from tests.unit import wire

_LENGTH = struct.Struct("!I")
_UPDATE = struct.Struct("!cQQQqB")


class ScriptedConnection:
    """Of a walsender that does nothing by itself; also the libpq connection below it."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._unread = b""
        self.commands: list[str] = []
        #: Status updates: the flushed LSN, and whether an answer is wanted.
        self.updates: list[tuple[Lsn, bool]] = []
        self.info = SimpleNamespace(
            server_version=180000, parameter_status=lambda name: "UTF8", encoding="utf-8"
        )
        self.pgconn = self

    # -- the server --------------------------------------------------------------------------------

    def sends(self, *frames: bytes) -> None:
        for frame in frames:
            self._theirs.sendall(_LENGTH.pack(len(frame)) + frame)

    def ends(self) -> None:
        self._theirs.close()

    # -- psycopg's connection ----------------------------------------------------------------------

    def execute(self, command: str) -> Any:
        self.commands.append(command)
        return SimpleNamespace(fetchone=lambda: ("30s",))

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    # -- libpq's -----------------------------------------------------------------------------------

    @property
    def socket(self) -> int:
        return self._ours.fileno()

    def exec_(self, command: bytes) -> Any:
        self.commands.append(command.decode())
        return SimpleNamespace(status=pq.ExecStatus.COPY_BOTH)

    def consume_input(self) -> None:
        try:
            data = self._ours.recv(65536)
        except BlockingIOError:
            return
        if not data:
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        self._unread += data

    def get_copy_data(self, is_async: int) -> tuple[int, memoryview]:
        if len(self._unread) < _LENGTH.size:
            return 0, memoryview(b"")
        (length,) = _LENGTH.unpack_from(self._unread)
        if len(self._unread) < _LENGTH.size + length:
            return 0, memoryview(b"")
        frame = self._unread[_LENGTH.size :][:length]
        self._unread = self._unread[_LENGTH.size + length :]
        return length, memoryview(frame)

    def put_copy_data(self, message: bytes) -> None:
        tag, _, flushed, _, _, wants_reply = _UPDATE.unpack(message)
        assert tag == b"r"
        self.updates.append((Lsn(flushed), bool(wants_reply)))

    def flush(self) -> int:
        return 0


class Fixture:
    def __init__(self, receiver_timeout_s: float = 60.0, *, is_open: bool = True) -> None:
        self.connection, self.clock = ScriptedConnection(), ManualClock()
        self.session = ReplicationSession()
        source = config().source.model_copy(update={"receiver_timeout_s": receiver_timeout_s})
        self.stream = ReplicationStream(
            source,
            "the_slot",
            self.session,
            Lsn(1000),
            application_name="test",
            connect=lambda *_, **__: self.connection,  # type: ignore[arg-type, return-value]
            clock=self.clock.now_s,
        )
        if is_open:
            self.stream.open()

    def read(self) -> bool:
        return self.stream.read(0.0)

    def passes(self, seconds: float) -> None:
        """A reader that finds nothing, all that time."""
        for _ in range(4):
            self.clock.pass_by(seconds / 4)
            self.read()

    def wait_for_update(self, holds: Callable[[tuple[Lsn, bool]], bool]) -> None:
        wait_until(lambda: any(map(holds, self.connection.updates)))


@pytest.fixture
def fixture() -> Iterator[Fixture]:
    made = Fixture()
    yield made
    made.stream.close()


def test_a_stream_starts_at_the_given_position(fixture: Fixture) -> None:
    (command,) = [c for c in fixture.connection.commands if "START_REPLICATION" in c]
    assert command.startswith('START_REPLICATION SLOT "the_slot" LOGICAL 0/3E8 (proto_version')


def test_an_opening_that_fails_late_frees_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    fixture = Fixture(is_open=False)
    with pytest.raises(RuntimeError):
        fixture.stream.open()

    assert fixture.connection.socket == -1  # it is closed


def test_frames_reach_the_session_whole_however_they_arrive(fixture: Fixture) -> None:
    frames = transaction(2000, 1, 2)
    fixture.connection.sends(*frames[:-1])
    fixture.read()
    assert not fixture.session.is_empty
    assert fixture.session.open_commit_lsn == Lsn(2000)

    fixture.connection.sends(frames[-1])
    fixture.read()
    assert fixture.session.last_commit_end == Lsn(2050)


def test_a_confirmed_position_is_sent_to_the_server_and_never_moves_back(fixture: Fixture) -> None:
    fixture.stream.confirm(Lsn(3000))
    fixture.stream.confirm(Lsn(2000))
    fixture.wait_for_update(lambda update: update[0] == Lsn(3000))
    assert fixture.stream.confirmed == Lsn(3000)


def test_a_server_that_asks_for_an_answer_gets_one(fixture: Fixture) -> None:
    fixture.connection.sends(wire.keepalive(2000, reply_requested=True))
    fixture.read()
    fixture.wait_for_update(lambda update: update == (Lsn(1000), False))


def test_the_last_position_is_sent_at_the_end(fixture: Fixture) -> None:
    fixture.stream.confirm(Lsn(4000))
    fixture.stream.close()
    assert fixture.connection.updates[-1][0] == Lsn(4000)


def test_a_stream_that_ends_says_so(fixture: Fixture) -> None:
    fixture.connection.ends()
    with pytest.raises(SourceUnreachable, match="stream of 'the_slot' ended: server closed"):
        fixture.read()


def test_a_read_that_waits_can_be_interrupted(fixture: Fixture) -> None:
    fixture.stream.interrupt()
    assert fixture.stream.read(3600.0) is False


# -- silence ---------------------------------------------------------------------------------------


def test_a_silent_server_is_asked_after_half_of_the_timeout(fixture: Fixture) -> None:
    fixture.passes(29.0)
    assert (Lsn(1000), True) not in fixture.connection.updates
    fixture.passes(2.0)
    fixture.wait_for_update(lambda update: update == (Lsn(1000), True))


def test_a_server_that_does_not_answer_is_given_up(fixture: Fixture) -> None:
    fixture.passes(31.0)
    fixture.passes(28.0)
    with pytest.raises(SourceSilent, match="'the_slot' for 60 s, and has not answered") as raised:
        fixture.passes(4.0)
    assert raised.value.retryable
    assert "receiver_timeout_s" in raised.value.solution


def test_a_server_that_answers_is_kept(fixture: Fixture) -> None:
    for _ in range(3):
        fixture.passes(40.0)
        fixture.connection.sends(wire.keepalive(2000))
        fixture.read()


def test_any_byte_is_a_sign_of_life(fixture: Fixture) -> None:
    """A row may take longer to arrive than a server may be silent."""
    frame = wire.keepalive(2000)
    content = _LENGTH.pack(len(frame)) + frame
    for byte in content[:-1]:
        fixture.passes(40.0)
        fixture.connection._theirs.sendall(bytes([byte]))
        fixture.read()


def test_time_in_which_nothing_was_read_is_not_held_against_the_server(fixture: Fixture) -> None:
    """A destination may take minutes, and the reader waits for it."""
    fixture.clock.pass_by(3600.0)
    fixture.read()
    fixture.clock.pass_by(3600.0)
    fixture.connection.sends(wire.keepalive(2000))
    fixture.read()


def test_without_a_timeout_silence_is_ignored(fixture: Fixture) -> None:
    fixture.stream.close()
    patient = Fixture(receiver_timeout_s=0)
    try:
        patient.passes(1e6)
    finally:
        patient.stream.close()
