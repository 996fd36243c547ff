"""What a destination keeps of the past, though the worker that writes it is killed again and again.

What that must be is computed from what triggers in the source wrote down of each change, and from
the commits that Postgres itself lists, by code that shares nothing with the pipeline.
"""

from __future__ import annotations

import itertools
import random
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.model.states import Ready
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.source.catalog import emit_marker
from tests.support.database import Database
from tests.support.killed_workers import query_destination
from tests.support.random_shop import is_caught_up
from tests.support.waiting import wait_until
from tests.support.worker_process import WorkerProcess

KILLS_OF_COPIES, KILLS = 2, 5
ROWS = 60
SOURCE = f"""
    create table log (id int primary key, note text, doc text);
    alter table log alter doc set storage external;
    create table versions (like log including all);
    create table marked (like log including all);
    insert into log select i, 'copied', repeat('d', 3000) from generate_series(1, {ROWS}) i;
    insert into versions select * from log;
    insert into marked select * from log;

    create table audit (
        seq bigserial primary key, xid bigint, name text, op text, id int, row jsonb);
    create function write_down() returns trigger language plpgsql as $$ begin
        insert into audit (xid, name, op, id, row)
        values (txid_current(), tg_table_name, lower(tg_op), old.id, to_jsonb(new));
        return null;
    end $$;
    create trigger rows after insert or update or delete on log
        for each row execute function write_down();
    create trigger all_rows after truncate on log execute function write_down();
    create trigger rows after insert or update or delete on versions
        for each row execute function write_down();
    create trigger all_rows after truncate on versions execute function write_down();
    create trigger rows after insert or update or delete on marked
        for each row execute function write_down();
    create trigger all_rows after truncate on marked execute function write_down();
    create publication etl_pub for table log, versions, marked
"""
#: Stands for the time of a copy that no row of the destination shows.
_EARLIEST = datetime.min.replace(tzinfo=UTC)
MODES = {"log": "append", "versions": "scd2", "marked": "soft_delete"}

Row = tuple[int, str, str | None]


class Change(NamedTuple):
    op: str
    #: The key that the row had before.
    id: int | None
    #: The row as it is then.
    row: Row | None


@dataclass(frozen=True)
class Commit:
    """A transaction of the source."""

    xid: int
    at: datetime
    changes: Sequence[Change]


def check_histories(
    database: Database, destination: dict[str, Any], folder: Path, *, is_slow: bool = False
) -> None:
    """Kill a worker again and again while tables of each mode change; then compare all they keep.

    Args:
        destination: that section of the configuration.
        folder: for the worker's output.
        is_slow: whether a write takes so long that copies would never catch up with a quick source.

    Raises:
        AssertionError: something is missing, doubled or wrong.
    """
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    database.execute(SOURCE)
    database.query("select pg_create_logical_replication_slot('oracle', 'pgoutput')")
    raw = _settings(database.dsn, destination)
    config = parse_config(raw, {})
    task = {"config": raw, "copies": "own"}
    with (
        closing(build_store(config)) as store,  # type: ignore[type-var]
        WorkerProcess("tests.support.worker", task, folder) as worker,
    ):
        with changing(database.dsn, rng.randrange(2**32), 5 if is_slow else 1):
            while worker.kills < KILLS_OF_COPIES:
                worker.start()
                store.wait_for_change(5)
                time.sleep(rng.uniform(0, 0.5))
                worker.kill()
            wait_until(lambda: _runs(worker) and _are_streamed(store))
            [(streamed_from,)] = database.query("select clock_timestamp()")
            while worker.kills < KILLS_OF_COPIES + (KILLS // 2 if is_slow else KILLS):
                _wait_for_progress(store, worker)
                # What follows a commit, and what is under way then, is cut short.
                time.sleep(rng.uniform(0, 0.2))
                worker.kill()
        with database.connect() as connection:
            goal = emit_marker(connection)
        wait_until(lambda: _runs(worker) and is_caught_up(store, goal, tables=len(MODES)))

    listed, written = _commits(database)
    log, versions, marked = ([_of_table(one, written, name) for one in listed] for name in MODES)
    _check_log(config, log)
    _check_versions(config, versions)
    _check_marked(config, marked, streamed_from)


def _settings(dsn: str, destination: dict[str, Any]) -> dict[str, Any]:
    return {
        "pipeline": "shop",
        "source": {"dsn": dsn, "publication": "etl_pub"},
        "destination": destination,
        "tables": {f"public.{name}": {"mode": mode} for name, mode in MODES.items()},
        # Many transactions are larger than a batch.
        "batch": {"max_fill_ms": 20, "max_rows": 60},
        "retry": {"initial_delay_ms": 50, "max_delay_ms": 500, "max_attempts": 100},
    }


def _are_streamed(store: CoordinatingStore) -> bool:
    states = store.get_table_replication_states().values()
    return len(states) == len(MODES) and all(isinstance(state, Ready) for state in states)


def _runs(worker: WorkerProcess) -> bool:
    """Whether it lives; started again where it doesn't."""
    worker.start()
    return worker.is_alive


def _wait_for_progress(store: CoordinatingStore, worker: WorkerProcess) -> None:
    """Until something more is durable than when it was called."""
    before = store.get_replication_progress(ApplyWorker())

    def is_further() -> bool:
        worker.start()
        return store.get_replication_progress(ApplyWorker()) != before

    wait_until(is_further)


# -- the source ------------------------------------------------------------------------------------


@contextmanager
def changing(dsn: str, seed: int, slowness: float) -> Iterator[None]:
    """All tables change at random while the block runs."""
    rng, stop = random.Random(seed), threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        ids = itertools.count(ROWS + 1)
        try:
            with psycopg.connect(dsn) as connection:
                while not stop.is_set():
                    [count] = rng.choices([1, 2, 4, 120], [50, 30, 20, 4])
                    for _ in range(count):
                        _change(connection, rng, ids)
                    connection.commit()
                    # A copy must be able to catch up, also with batches as small as these.
                    stop.wait(slowness * rng.uniform(0.02, 0.15))
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


def _change(connection: psycopg.Connection[Any], rng: random.Random, ids: Iterator[int]) -> None:
    """One change of each table; a row is one of the last few, so that histories are long."""
    [kind] = rng.choices(
        ["insert", "update", "doc", "key", "delete", "truncate"], [30, 40, 10, 8, 12, 0.1]
    )
    new = next(ids) if kind in ("insert", "key") else 0
    values = {"new": new, "note": str(rng.random()), "doc": rng.choice("xyz") * 3000}
    for name in MODES:
        one = f"id = (select id from {name} order by id desc offset {rng.randrange(30)} limit 1)"
        statement = {
            "insert": f"insert into {name} values (%(new)s, %(note)s, %(doc)s)",
            # Postgres doesn't send the document.
            "update": f"update {name} set note = %(note)s where {one}",
            "doc": f"update {name} set doc = %(doc)s where {one}",
            "key": f"update {name} set id = %(new)s where {one}",
            "delete": f"delete from {name} where {one}",
            "truncate": f"truncate {name}",
        }[kind]
        connection.execute(statement, values)


_Written = dict[int, list[tuple[str, Change]]]


def _commits(database: Database) -> tuple[list[tuple[int, datetime]], _Written]:
    """Transactions in the order of their commits; what each did, with the tables' names."""
    messages = database.query(
        "select data from pg_logical_slot_get_binary_changes('oracle', null, null, "
        "'proto_version', '1', 'publication_names', 'etl_pub')"
    )
    begins = [struct.unpack("!QqI", data[1:]) for (data,) in messages if data[:1] == b"B"]
    epoch = datetime(2000, 1, 1, tzinfo=UTC)
    written: _Written = {}
    for xid, name, op, key, row in database.query(
        "select xid, name, op, id, row from audit order by seq"
    ):
        now = None if row is None else (row["id"], row["note"], row["doc"])
        written.setdefault(xid, []).append((name, Change(op, key, now)))
    assert {xid for _, _, xid in begins} == written.keys()
    return [(xid, epoch + timedelta(microseconds=us)) for _, us, xid in begins], written


def _of_table(commit: tuple[int, datetime], written: _Written, table: str) -> Commit:
    xid, at = commit
    return Commit(xid, at, [change for name, change in written[xid] if name == table])


def _replay(
    rows: dict[int, Row], changes: Sequence[Change], latest: dict[int, Row] | None = None
) -> set[int]:
    """Do the changes, and keep the latest row of each key; which keys they were about."""
    touched: set[int] = set()
    for change in changes:
        if change.op == "truncate":
            touched |= rows.keys()
            rows.clear()
        if change.id is not None:
            touched.add(change.id)
            del rows[change.id]
        if change.row is not None:
            touched.add(change.row[0])
            rows[change.row[0]] = change.row
            if latest is not None:
                latest[change.row[0]] = change.row
    return touched


def _copied(commits: Sequence[Commit]) -> dict[int, Row]:
    """The rows after these transactions."""
    rows: dict[int, Row] = {n: (n, "copied", "d" * 3000) for n in range(1, ROWS + 1)}
    for commit in commits:
        _replay(rows, commit.changes)
    return rows


# -- the destination -------------------------------------------------------------------------------


def _check_log(config: PipelineConfig, commits: Sequence[Commit]) -> None:
    """The rows of one moment, and every change after it, once and in order.

    A worker that is killed as its copy ends may have to copy again: then the last copy counts.
    """
    copies = "(select max(_etl_commit_lsn) from public.log where _etl_op = 'copy')"
    copied = query_destination(
        config,
        "select id, note, doc from public.log "
        f"where _etl_op = 'copy' and _etl_commit_lsn = {copies}",
    )
    found = query_destination(
        config,
        "select _etl_xid, _etl_commit_time, _etl_op, id, note, doc, _etl_unchanged from public.log "
        f"where _etl_op <> 'copy' and _etl_commit_lsn > {copies} "
        "order by _etl_commit_lsn, _etl_ordinal",
    )
    in_log = {xid for xid, *_ in found}
    first = next(n for n, commit in enumerate(commits) if commit.xid in in_log)
    before, after = commits[:first], commits[first:]
    assert len(after) > KILLS, "too little was streamed for the test to mean anything"
    assert found == [
        (commit.xid, commit.at, change.op, *(change.row or (change.id, None, None)), None)
        for commit in after
        for change in commit.changes
    ]
    assert sorted(copied) == sorted(_copied(before).values())


def _check_versions(config: PipelineConfig, commits: Sequence[Commit]) -> None:
    """The versions of the rows of one moment, and of every transaction after it.

    Of several copies, the last one counts; what is over by then has no overlap.
    """
    every = query_destination(
        config,
        "select id, note, doc, _etl_valid_from, _etl_valid_to, _etl_is_current, _etl_unchanged "
        "from public.versions",
    )
    times = {commit.at for commit in commits}
    at = max({row[3] for row in every} - times, default=None)
    assert all(ended is None or began < ended for _, _, _, began, ended, *_ in every)
    for one, following in itertools.pairwise(sorted(every, key=_order)):
        assert one[0] != following[0] or (one[4] is not None and one[4] <= following[3])
    found = [
        (*row[:3], row[3] if at is None else max(row[3], at), *row[4:])
        for row in every
        if at is None or row[4] is None or row[4] > at
    ]
    # Which moment the copy shows isn't written down: it is one before the first change that counts.
    first = min((row[4] or row[3] for row in found if (row[4] or row[3]) in times), default=None)
    latest = next((n for n, commit in enumerate(commits) if commit.at == first), len(commits))
    candidates = (_versions(commits, n, at) for n in range(latest, -1, -1))
    assert sorted(found, key=_order) in candidates


def _order(version: tuple[Any, ...]) -> Any:
    return version[0], version[3] or _EARLIEST


def _versions(
    commits: Sequence[Commit], copied: int, copied_at: datetime | None
) -> list[tuple[Any, ...]]:
    """Every version, where the copy shows the rows after the first so many transactions."""
    rows = _copied(commits[:copied])
    current = dict.fromkeys(rows, copied_at)
    shown = dict(rows)
    versions: list[tuple[Any, ...]] = []
    for commit in commits[copied:]:
        for key in _replay(rows, commit.changes):
            if key in current:
                versions.append((*shown.pop(key), current.pop(key), commit.at, False, None))
            if key in rows:
                shown[key], current[key] = rows[key], commit.at
    versions += [(*shown[key], current[key], None, True, None) for key in shown]
    return sorted(versions, key=_order)


def _check_marked(
    config: PipelineConfig, commits: Sequence[Commit], streamed_from: datetime
) -> None:
    """The rows as they are, and each deleted one as it was last, with the time of its end.

    What was deleted before the copy isn't there, unless an earlier copy had it. Then it ended at
    the time of the later copy.

    Args:
        streamed_from: when the copy was complete; whatever was deleted since then must be there.
    """
    found = query_destination(config, "select id, note, doc, _etl_deleted_at from public.marked")
    rows, ended = _copied([]), dict[int, tuple[Row, datetime]]()
    for commit in commits:
        before = dict(rows)
        for key in _replay(rows, commit.changes, before):
            if key in rows:
                ended.pop(key, None)
            elif key in before:
                ended[key] = (before[key], commit.at)
    assert sorted(row[:3] for row in found if row[3] is None) == sorted(rows.values())
    times = {commit.at for commit in commits}
    gone = {row[0]: row for row in found if row[3] is not None}
    assert len(found) == len(rows) + len(gone), "a key is there twice"
    for key, row in gone.items():
        assert key in ended
        if row[3] in times:
            last, at = ended[key]
            # The copy may never have seen the document of a row that was deleted meanwhile.
            is_missing = row[2] is None and at <= streamed_from
            assert (row[0], row[1], None if is_missing else row[2], row[3]) == (
                *last[:2],
                None if is_missing else last[2],
                at,
            )
    since = {key for key, (_, at) in ended.items() if at > streamed_from}
    assert since, "too little was deleted for the test to mean anything"
    assert since <= gone.keys()
    assert all(gone[key][3] in times for key in since)
