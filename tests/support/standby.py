"""A primary and its standby, each a server of a test's own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_dagster.demo.ports import free_port
from etl_dagster.demo.server import SUPERUSER, EmbeddedPostgres, find_servers
from tests.support.database import Database
from tests.support.waiting import wait_until


class Pair:
    """A primary, and a standby that takes over its slots."""

    def __init__(self, folder: Path) -> None:
        self.binaries = find_servers()[0]
        settings = {"wal_level": "logical", "wal_sender_timeout": "10min"}
        self.primary = EmbeddedPostgres(
            folder / "primary", self.binaries, settings=settings, durable=False
        )
        self.standby = EmbeddedPostgres(
            folder / "standby",
            self.binaries,
            port=free_port(),
            settings={
                **settings,
                "hot_standby_feedback": "on",
                "sync_replication_slots": "on",
                "primary_slot_name": "standby_1",
                "wal_receiver_status_interval": "1s",
            },
            durable=False,
        )

    def start(self) -> None:
        """The standby begins as a copy of the primary while that is down."""
        self.primary.start()
        self.primary.stop()
        subprocess.run(["cp", "-a", self.primary.folder, self.standby.folder], check=True)
        # The standby's own connections: a password would stand in a file of its settings.
        with (self.primary.data_dir / "pg_hba.conf").open("w") as rules:
            rules.write(f"host all,replication {SUPERUSER} 127.0.0.1/32 trust\n")
        self.primary.start()
        with psycopg.connect(self.primary.dsn(), autocommit=True) as admin:
            admin.execute("select pg_create_physical_replication_slot('standby_1', true)")
            admin.execute("alter system set synchronized_standby_slots = 'standby_1'")
            admin.execute("select pg_reload_conf()")
        self.standby.settings["primary_conninfo"] = (
            f"host={self.primary.host} port={self.primary.port} user={SUPERUSER} dbname=postgres"
        )
        owner = self.standby.data_dir.stat()
        signal_file = self.standby.data_dir / "standby.signal"
        signal_file.touch()
        shutil.chown(signal_file, owner.st_uid, owner.st_gid)
        self.standby.start()

    def stop(self) -> None:
        self.standby.stop()
        self.primary.stop()

    def dsn(self, database: str) -> str:
        """Of whichever is the primary."""
        return make_conninfo(
            self.primary.dsn(database),
            host=f"{self.primary.host},{self.standby.host}",
            port=f"{self.primary.port},{self.standby.port}",
            target_session_attrs="primary",
        )

    def is_synchronized(self, slot_name: str) -> bool:
        # A slot is taken over for good once the standby has what it needs.
        with psycopg.connect(self.primary.dsn(), autocommit=True) as admin:
            admin.execute("select pg_log_standby_snapshot()")
        with psycopg.connect(self.standby.dsn(), autocommit=True) as admin:
            found = admin.execute(
                "select synced and not temporary from pg_replication_slots where slot_name = %s",
                [slot_name],
            ).fetchone()
        return found == (True,)

    def create_database(self, name: str) -> tuple[Database, Database]:
        """On the primary, and as the standby has it."""
        with psycopg.connect(self.primary.dsn(), autocommit=True) as admin:
            admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        self.await_replay()
        return Database(self.primary, name), Database(self.standby, name)

    def await_replay(self) -> None:
        """Until the standby shows what is committed on the primary now."""
        with psycopg.connect(self.primary.dsn(), autocommit=True) as admin:
            admin.execute("set synchronous_commit = on")  # so that what is committed is flushed
            admin.execute("select pg_logical_emit_message(true, 'test', '')")
            [(end,)] = admin.execute("select pg_current_wal_flush_lsn()::text").fetchall()
        with psycopg.connect(self.standby.dsn(), autocommit=True) as admin:

            def is_replayed() -> bool:
                row = admin.execute("select pg_last_wal_replay_lsn() >= %s::pg_lsn", [end])
                return row.fetchone() == (True,)

            wait_until(is_replayed)

    @contextmanager
    def standby_with(self, **settings: str) -> Iterator[None]:
        """Start the standby again with other settings, and at the end as it was."""
        before = dict(self.standby.settings)
        for changed in (before | settings, before):
            self.standby.stop()
            self.standby.settings = changed
            self.standby.start()
            if changed is not before:
                yield

    def fail_over(self) -> None:
        """The primary dies at once; the standby is promoted."""
        assert self.primary.process_id is not None
        os.kill(self.primary.process_id, signal.SIGQUIT)
        self.primary.stop()
        with psycopg.connect(self.standby.dsn(), autocommit=True) as admin:
            assert admin.execute("select pg_promote(true, 60)").fetchone() == (True,)


@contextmanager
def running_pair() -> Iterator[Pair]:
    """Both servers until the end of the block; the test is skipped without PostgreSQL 17."""
    if not find_servers() or find_servers()[0].major < 17:
        pytest.skip("no PostgreSQL 17 here")
    # pytest's own folders are closed to the servers' account by the next run of pytest.
    folder = Path(tempfile.mkdtemp(prefix="etl-test-pair-"))
    folder.chmod(0o755)
    pair = Pair(folder)
    try:
        pair.start()
        yield pair
    finally:
        pair.stop()
        shutil.rmtree(folder, ignore_errors=True)
