"""A lake whose catalog's server fails in the middle of a commit: each change is there once then.

Every failure is one of the destination's, and one that is tried again.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.demo.server import EmbeddedPostgres
from etl_dagster.destinations.ducklake import DuckLakeDestination
from etl_dagster.errors import DestinationUnreachable
from etl_dagster.model.events import EventBatch
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.testing.changes import ORDERS, Transactions, batch, delete, insert, order, update
from tests.ducklake.lakes import lake_at_server, rows_of
from tests.ducklake.test_failures import at, chain
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.waiting import PATIENCE_S

_TRIES = 6


class Wire:
    """Between DuckDB and the server of the catalog; breaks while a transaction is committed."""

    def __init__(self, server: tuple[str, int]) -> None:
        self._server = server
        #: What happens instead of the next commit of a snapshot; called with what passes it on
        #: and reads its answer. The client gets no answer.
        self.instead: Callable[[Callable[[], None]], None] | None = None
        #: Whether it has happened, and what failed of it.
        self.is_over = threading.Event()
        self.failures: list[BaseException] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)

    def close(self) -> None:
        self._listener.close()

    @staticmethod
    def _start(work: Callable[..., None], *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(self._server) as server:
            is_broken, has_answered = threading.Event(), threading.Event()
            self._start(self._answer, server, client, is_broken, has_answered)
            has_snapshot = False
            while data := client.recv(1 << 20):
                has_snapshot = has_snapshot or (b"ducklake_snapshot" in data and b"INSERT" in data)
                instead = self.instead
                if instead is not None and has_snapshot and b"COMMIT" in data:
                    self.instead = None
                    is_broken.set()

                    def commit(data: bytes = data) -> None:
                        server.sendall(data)
                        has_answered.wait(30)

                    try:
                        instead(commit)
                    except BaseException as failure:
                        self.failures.append(failure)
                    self.is_over.set()
                    return
                server.sendall(data)

    @staticmethod
    def _answer(
        server: socket.socket,
        client: socket.socket,
        is_broken: threading.Event,
        has_answered: threading.Event,
    ) -> None:
        with suppress(OSError):
            while data := server.recv(1 << 20):
                if is_broken.is_set():
                    has_answered.set()
                else:
                    client.sendall(data)
        has_answered.set()
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


@contextmanager
def wire_to(database: Database) -> Iterator[Wire]:
    address = conninfo_to_dict(database.dsn)
    wire = Wire((str(address["host"]), int(address["port"] or 0)))
    try:
        yield wire
    finally:
        wire.close()


@pytest.fixture(scope="module")
def mortal(newest_server: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    """A server that may be killed: unlike the others, it keeps what it has acknowledged."""
    folder = Path(tempfile.mkdtemp(prefix="etl-test-catalog-"))
    folder.chmod(0o755)  # an account other than root's must get in
    try:
        with EmbeddedPostgres(folder / "pg", newest_server.binaries) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def batches() -> list[EventBatch]:
    """Changes, each of which would show if it were lost or applied twice."""
    stream = Transactions()
    return [
        batch(stream.commit(insert(ORDERS, **order(1, "s3cret")), insert(ORDERS, **order(2)))),
        batch(stream.commit(update(ORDERS, **order(1, "second")), delete(ORDERS, id=2))),
        batch(stream.commit(insert(ORDERS, **order(2, "again")), insert(ORDERS, **order(3)))),
    ]


def write(
    destination: DuckLakeDestination, events: EventBatch, wire: Wire
) -> list[DestinationUnreachable]:
    """Write as the engine does: again, as long as the failure is one that waiting helps."""
    failures: list[DestinationUnreachable] = []
    while (failure := _tried(destination, events)) is not None:
        assert failure.retryable
        assert "s3cret" not in chain(failure)
        failures.append(failure)
        # The engine waits longer and longer; here, until the server is back.
        assert wire.is_over.wait(PATIENCE_S)
        if len(failures) == _TRIES:
            break
    return failures


def _tried(destination: DuckLakeDestination, events: EventBatch) -> DestinationUnreachable | None:
    try:
        destination.write_events(events)
    except DestinationUnreachable as failure:
        return failure
    return None


def breaking(database: Database, folder: Path, break_it: Callable[[Wire], None]) -> None:
    """Write, with a failure in the middle of the second commit, and compare."""
    first, second, third = batches()
    with wire_to(database) as wire:
        place = at(database, folder, host="127.0.0.1", port=wire.port, sslmode="disable")
        destination = DuckLakeDestination(place, timeout_s=20, changelog=True)
        destination.startup(MemoryStore())
        destination.write_events(first)
        break_it(wire)
        broken = write(destination, second, wire)
        assert wire.failures == []
        assert broken, "nothing broke"
        assert len(broken) < _TRIES, "it never came back"
        assert write(destination, third, wire) == []
        destination.shutdown()
    lake = lake_at_server(database, folder)
    assert rows_of(lake, "FROM public.orders SELECT id, note ORDER BY id") == [
        {"id": 1, "note": "second"},
        {"id": 2, "note": "again"},
        {"id": 3, "note": "new"},
    ]
    log = rows_of(lake, "FROM _etl.changelog SELECT commit_lsn, ordinal ORDER BY ALL")
    assert [tuple(entry.values()) for entry in log] == [
        (lsn, ordinal) for lsn in (1000, 1100, 1200) for ordinal in (0, 1)
    ]


def test_a_commit_that_is_not_acknowledged_is_applied_once(
    lake_database: Database, tmp_path: Path
) -> None:
    def lose_the_answer(wire: Wire) -> None:
        wire.instead = lambda commit: commit()

    breaking(lake_database, tmp_path, lose_the_answer)


@pytest.mark.parametrize("passes", [False, True], ids=["before", "after"])
def test_a_server_that_is_killed_around_a_commit_loses_and_doubles_nothing(
    mortal: EmbeddedPostgres, tmp_path: Path, passes: bool
) -> None:
    with Database.create(mortal) as database:

        def kill(commit: Callable[[], None]) -> None:
            if passes:
                commit()
            process = psutil.Process(mortal.process_id)
            killed = [process, *process.children(recursive=True)]
            for each in killed:
                each.kill()
            mortal.stop()
            psutil.wait_procs(killed[1:], PATIENCE_S)
            mortal.start()
            database.disconnect()

        def kill_at_commit(wire: Wire) -> None:
            wire.instead = kill

        breaking(database, tmp_path, kill_at_commit)


def test_a_server_without_a_free_connection_is_waited_for(
    lake_database: Database, tmp_path: Path
) -> None:
    role, password = sql.Identifier(f"{lake_database.name}_writer"), make_secret("writer")
    first, second, _ = batches()
    with lake_database.connect() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, password))
        admin.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(
                sql.Identifier(lake_database.name), role
            )
        )
        try:
            place = at(lake_database, tmp_path, user=role.as_string().strip('"'), password=password)
            writer = DuckLakeDestination(place, timeout_s=5)
            writer.startup(MemoryStore())
            writer.write_events(first)
            writer.shutdown()
            admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT 0").format(role))
            destination = DuckLakeDestination(place, timeout_s=5)
            with pytest.raises(DestinationUnreachable, match="too many connections") as caught:
                destination.startup(MemoryStore())
            assert caught.value.retryable
            assert "s3cret" not in chain(caught.value)

            admin.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(role))
            destination.startup(MemoryStore())
            destination.write_events(second)
            destination.shutdown()
            assert rows_of(
                lake_at_server(lake_database, tmp_path), "FROM public.orders SELECT id"
            ) == [{"id": 1}]
        finally:
            admin.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(role))
            admin.execute(sql.SQL("DROP ROLE {}").format(role))
