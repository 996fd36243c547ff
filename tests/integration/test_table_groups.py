"""Many small tables share slots, connections and writes; each one's failure stays its own."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import DestinationUnreachable, TableWriteFailed
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch, TableRows
from etl_dagster.model.schema import TableId, TableSchema
from etl_dagster.model.states import Errored, FinishedCopy, Init, Ready, SyncWait, TableState
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.copying import group_copy, slot_watch
from etl_dagster.runtime.copying.group_sync import GroupSync
from etl_dagster.runtime.many import many
from etl_dagster.runtime.timing import Timing
from etl_dagster.runtime.worker_parts import WorkerParts
from etl_dagster.source.catalog import fetch_leaves_of
from etl_dagster.source.control import SourceControl
from etl_dagster.stores.postgres import PostgresStore
from tests.support.asking import control_with
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.pipelines import rows, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

ROWS = 20


def create(database: Database, count: int) -> list[str]:
    names = [f"t{number:03}" for number in range(count)]
    database.execute(
        "".join(
            f"create table {name} (id int primary key, n int);"
            f"insert into {name} select i, {place} from generate_series(1, {ROWS}) i;"
            for place, name in enumerate(names)
        ),
        "create publication etl_pub for all tables",
    )
    return names


def assert_in_step(database: Database, config: PipelineConfig, names: Sequence[str]) -> None:
    query = " union all ".join(
        f"select '{name}' as t, count(*), sum(id), sum(n) from public.{name}" for name in names
    )
    found = rows(config, f"{query} order by 1")
    assert [tuple(map(str, row)) for row in found] == [
        tuple(map(str, row)) for row in database.query(f"{query} order by 1")
    ]


def states(store: CoordinatingStore) -> Counter[str]:
    return Counter(type(s).__name__ for s in store.get_table_replication_states().values())


class Watching(DuckDBDestination):
    """Calls a function before each write of whole tables."""

    before_write: Callable[[Sequence[TableSchema]], None]
    writes: list[int]
    batches: list[int]

    @classmethod
    def of(
        cls, config: PipelineConfig, before_write: Callable[..., None] | None = None
    ) -> Watching:
        assert config.destination.type == "duckdb"
        self = cls(config.destination.path)
        self.before_write = before_write or (lambda schemas: None)
        self.writes, self.batches = [], []
        return self

    def write_whole_tables(self, copies: Sequence[tuple[TableSchema, TableRows]]) -> None:
        self.before_write([schema for schema, _ in copies])
        super().write_whole_tables(copies)
        self.writes.append(len(copies))

    def write_events(self, events: EventBatch) -> None:
        super().write_events(events)
        if events.row_count:
            self.batches.append(len(events.tables))


@contextmanager
def watched(database: Database) -> Iterator[dict[str, int]]:
    """The most slots and connections that the database had at a time."""
    most = {"slots": 0, "connections": 0}
    ended = threading.Event()

    def watch() -> None:
        with database.connect() as connection:
            while not ended.wait(0.02):
                [now] = connection.execute(
                    "select (select count(*) from pg_replication_slots"
                    " where database = current_database()),"
                    " (select count(*) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid())"
                ).fetchall()
                for name, count in zip(most, now, strict=True):
                    most[name] = max(most[name], count)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def test_many_tables_become_ready_within_few_slots_connections_and_writes(
    database: Database, make_config: MakeConfig
) -> None:
    """And one change in each of them is one batch."""
    names = create(database, 150)
    config = make_config(database, **{"batch.max_fill_ms": 10_000})
    destination = Watching.of(config)
    with closing(build_store(config)) as store, watched(database) as most:  # type: ignore[type-var]
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(120)
            assert states(store) == {"Ready": 150}
            plans = many(store).get_copy_plans(list(store.get_table_replication_states()))
            assert [c.row_count for p in plans.values() for c in p.finished.values()] == [
                ROWS
            ] * 150
            database.execute(
                "".join(f"update {name} set n = n + 1 where id = 7;" for name in names)
            )
            assert pipeline.wait_until_caught_up(60)
            assert destination.batches == [150]
        assert most["slots"] <= 5
        assert most["connections"] <= 40
        assert sum(destination.writes) == 150
        assert len(destination.writes) <= 8
    assert database.slots() == ["etl_dagster_apply_test"]
    assert_in_step(database, config, names)


def test_rows_that_change_while_a_group_is_copied_arrive_once(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """Tables are altered, truncated, renamed and dropped meanwhile, too."""
    database = newest_database
    names = create(database, 12)
    config = make_config(database, **{"copy.max_table_sync_workers": 1})
    done = threading.Event()

    def change(schemas: Sequence[TableSchema]) -> None:
        if done.is_set():
            return
        done.set()
        database.execute(
            "".join(
                f"update {name} set n = n + 100 where id % 3 = 0;"
                f"delete from {name} where id = 5; insert into {name} values (1000, 1);"
                for name in names
            ),
            "truncate t001; insert into t001 values (1, 1)",
            "alter table t002 add column extra text; update t002 set extra = 'x' where id < 4",
            "alter table t003 rename to t003_new",
            "insert into t003_new values (2000, 2)",
            "drop table t004",
            "vacuum full t005",
        )

    destination = Watching.of(config, change)
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(120)

    there = [name for name in names if name not in ("t003", "t004")]
    assert_in_step(database, config, [*there, "t003_new"])
    assert rows(config, "select count(*), max(extra) from public.t002 where extra is not null") == [
        (3, "x")
    ]


def test_one_bad_table_leaves_its_group_and_the_others_continue(
    database: Database, make_config: MakeConfig
) -> None:
    """One whose rows can't be read, and one that the destination refuses."""
    names = create(database, 12)
    database.execute(
        "create function fail(int) returns bool language plpgsql immutable as"
        " $$ begin raise 'no such luck'; end $$",
        "drop publication etl_pub",
        "create publication etl_pub for table "
        + ", ".join(name for name in names if name != "t003")
        + ", t003 where (1 / (n - 3) > 0)",
    )
    config = make_config(database, **{"copy.max_table_sync_workers": 2})

    def refuse(schemas: Sequence[TableSchema]) -> None:
        for schema in schemas:
            if schema.table_name == "t007":
                raise TableWriteFailed(schema.id, "no room for t007")

    destination = Watching.of(config, refuse)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(120)
            database.execute(*(f"insert into {name} values (1000, 5)" for name in names[:3]))
            assert pipeline.wait_until_caught_up(60)
        assert states(store) == {"Ready": 10, "Errored": 2}
        reasons = {
            s.reason
            for s in store.get_table_replication_states().values()
            if isinstance(s, Errored)
        }
        assert any("division by zero" in reason for reason in reasons)
        assert "no room for t007" in reasons
    assert_in_step(database, config, [name for name in names if name not in ("t003", "t007")])


def test_a_table_that_another_session_has_locked_does_not_hold_up_its_group(
    newest_database: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = create(newest_database, 8)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 1})
    with newest_database.connect(autocommit=False) as blocker:
        looks = itertools.count()

        def lock_at_first_and_unlock_then(asked: str) -> None:
            """Names are read again once a table was left out, for the others."""
            if asked == "reading tables' names":
                if next(looks) == 0:
                    blocker.execute("lock table t004")
                else:
                    blocker.rollback()

        make_control = control_with(after=lock_at_first_and_unlock_then)
        with (
            caplog.at_level(logging.INFO, "etl_dagster.runtime.copying.group_sync"),
            running(config, make_control=make_control) as pipeline,
        ):
            assert pipeline.wait_until_caught_up(60)

    assert "t004 is locked by another session" in caplog.text
    assert_in_step(newest_database, config, names)


@pytest.mark.parametrize("after_writes", [0, 1])
def test_a_group_that_was_interrupted_is_copied_again(
    newest_database: Database, make_config: MakeConfig, after_writes: int
) -> None:
    """Its tables are complete all the same, and nothing of its slot is left."""
    names = create(newest_database, 60)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 1})
    stopped = threading.Event()

    def stop(schemas: Sequence[TableSchema]) -> None:
        if len(destination.writes) == after_writes:
            stopped.set()
            pipeline.shutdown()

    destination = Watching.of(config, stop)
    with running(config, destination=destination) as pipeline:
        assert stopped.wait(60)
    newest_database.execute(*(f"update {name} set n = 7 where id = 3" for name in names))
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(120)

    assert newest_database.slots() == ["etl_dagster_apply_test"]
    assert_in_step(newest_database, config, names)


def test_a_table_that_is_dropped_while_it_is_measured_has_no_size(
    newest_database: Database,
) -> None:
    names = create(newest_database, 2)
    ids = [newest_database.query("select to_regclass(%s)::oid", [name])[0][0] for name in names]
    with newest_database.connect(autocommit=False) as connection:
        connection.execute("set transaction isolation level repeatable read; select 1")
        newest_database.execute(f"drop table {names[0]}")

        assert list(fetch_leaves_of(connection, ids)) == ids[1:]


class Forgetful(Watching):
    """Notes the tables' states whenever it has to forget earlier copies."""

    store: CoordinatingStore
    found: list[Counter[str]]

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        self.found.append(states(self.store))
        super().drop_table_for_copy(schema)

    def drop_tables_for_copy(self, schemas: Sequence[TableSchema]) -> None:
        self.found.append(states(self.store))
        super().drop_tables_for_copy(schemas)


@pytest.mark.parametrize("count", [6, 1], ids=["group", "single"])
def test_no_table_counts_as_copied_once_its_copy_is_forgotten(
    newest_database: Database,
    make_config: MakeConfig,
    count: int,
) -> None:
    """Killed right after, the next process would miss the copy, and refuse to start."""
    names = create(newest_database, count)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 1})

    class Store(PostgresStore):
        """Stops the pipeline once tables are copied, before they are brought up to date."""

        copied = threading.Event()
        stops = True

        def transition_table_states(
            self, changes: Sequence[tuple[TableId, TableState, TableState]]
        ) -> Collection[TableId]:
            if self.stops and any(isinstance(new, SyncWait) for _, _, new in changes):
                return []  # what comes after the copy is another process's
            moved = super().transition_table_states(changes)
            if self.stops and any(isinstance(new, FinishedCopy) for _, _, new in changes):
                self.copied.set()
                pipeline.shutdown()
            return moved

    with closing(Store(newest_database.dsn, config.pipeline)) as store:
        with running(config, store=store) as pipeline:
            assert store.copied.wait(60)
        store.stops = False
        assert states(store) == {"FinishedCopy": count}
        # Without it, what was copied can't be taken up again.
        newest_database.drop_slots()

        destination = Forgetful.of(config)
        destination.store, destination.found = store, []
        with running(config, store=store, destination=destination) as pipeline:
            assert pipeline.wait_until_caught_up(60)

    assert destination.found == [{"DataSync": count}]
    assert_in_step(newest_database, config, names)


def test_a_destination_that_fails_for_a_while_gets_the_same_tables_again(
    newest_database: Database, make_config: MakeConfig
) -> None:
    names = create(newest_database, 12)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 2})
    failures = iter(
        [DestinationUnreachable("the disk is on holiday"), ValueError(make_secret("s3cr3t"))]
    )

    def fail(schemas: Sequence[TableSchema]) -> None:
        if failure := next(failures, None):
            raise failure

    with running(config, destination=Watching.of(config, fail)) as pipeline:
        assert pipeline.wait_until_caught_up(120)

    assert_in_step(newest_database, config, names)


def test_a_destination_that_takes_one_table_at_a_time_gets_one_at_a_time(
    newest_database: Database, make_config: MakeConfig
) -> None:
    names = create(newest_database, 12)
    config = make_config(
        newest_database, destination={"type": "memory"}, **{"copy.max_table_sync_workers": 2}
    )
    destination = MemoryDestination()
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(120)

    for name in names:
        assert len(destination.rows(f"public.{name}")) == ROWS


class LosesAnswers(Destination):
    """Writes the first chunk of each table, and fails before it can confirm it."""

    name = "loses-answers"

    def __init__(self) -> None:
        #: For each chunk that was written, its table and its copy.
        self.chunks: list[tuple[str, str]] = []
        self._failed: set[str] = set()

    def drop_table_for_copy(self, schema: TableSchema) -> None:
        pass

    def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
        if rows.is_end_of_copy:
            return
        for _ in rows.batches():
            pass
        self.chunks.append((schema.table_name, rows.copy_id))
        if schema.table_name not in self._failed:
            self._failed.add(schema.table_name)
            raise DestinationUnreachable("no answer")

    def write_events(self, events: EventBatch) -> None:
        pass


def test_rows_without_a_key_are_never_written_twice_under_one_copy(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """Such a destination could not tell them from rows that are equal."""
    create(newest_database, 6)
    newest_database.execute(
        "alter table t001 drop constraint t001_pkey", "alter table t001 replica identity full"
    )
    config = make_config(
        newest_database, destination={"type": "memory"}, **{"copy.max_table_sync_workers": 2}
    )
    destination = LosesAnswers()
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(120)

    copies = [copy_id for name, copy_id in destination.chunks if name == "t001"]
    assert len(copies) >= 2
    assert len(copies) == len(set(copies))


def test_a_subclass_that_overrides_writing_rows_is_called_for_each_table(
    newest_database: Database, make_config: MakeConfig
) -> None:
    """It inherits the other way, which knows nothing of what it does to rows."""
    written: list[str] = []

    class Own(DuckDBDestination):
        def write_table_rows(self, schema: TableSchema, rows: TableRows) -> None:
            written.append(schema.name)
            super().write_table_rows(schema, rows)

    create(newest_database, 6)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 2})
    assert config.destination.type == "duckdb"
    with running(config, destination=Own(config.destination.path)) as pipeline:
        assert pipeline.wait_until_caught_up(120)

    assert set(written) == {f"public.t{number:03}" for number in range(6)}


def test_a_table_that_changes_places_before_it_is_read_is_not_taken_for_the_other(
    newest_database: Database,
    make_config: MakeConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rows are read by a table's name, which is looked up a moment before."""
    names = create(newest_database, 6)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 1})
    swapped = threading.Event()

    def swap_once(asked: str) -> None:
        if asked == "reading tables' names" and not swapped.is_set():
            swapped.set()
            newest_database.execute(
                "begin; alter table t001 rename to x; alter table t002 rename to t001;"
                " alter table x rename to t002; commit"
            )

    make_control = control_with(after=swap_once)
    with (
        caplog.at_level(logging.INFO),
        running(config, make_control=make_control) as pipeline,
    ):
        assert pipeline.wait_until_caught_up(120)

    assert "was rewritten" in caplog.text or "was altered" in caplog.text
    assert_in_step(newest_database, config, names)


def test_ready_tables_stay_ready_when_more_are_added(
    newest_database: Database, make_config: MakeConfig
) -> None:
    names = create(newest_database, 8)
    config = make_config(newest_database, **{"copy.max_table_sync_workers": 2})
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            before = dict(store.get_table_replication_states())
            newest_database.execute(
                *(f"create table u{i} as select 1 as id, 2 as n" for i in range(8)),
                *(f"alter table u{i} add primary key (id)" for i in range(8)),
            )
            assert pipeline.wait_until_caught_up(60)
        after = dict(store.get_table_replication_states())
        assert all(isinstance(state, Ready) for state in after.values())
        assert {table_id: after[table_id] for table_id in before} == before
    assert_in_step(newest_database, config, [*names, *(f"u{i}" for i in range(8))])
    assert build_destination(config).name == "duckdb"


def test_a_group_that_no_process_takes_over_is_given_up(
    newest_database: Database, make_config: MakeConfig
) -> None:
    names = create(newest_database, 3)
    config = make_config(newest_database)
    ids = [
        row[0]
        for row in newest_database.query(
            "select oid::int from pg_class where relname = any(%s)", [names]
        )
    ]
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        store.update_table_replication_states([(table_id, Init()) for table_id in ids])
        destination = build_destination(config)
        destination.startup(store)
        control = SourceControl(config.source, application_name="test")
        timing = Timing(handover_s=0.5)
        GroupSync(
            WorkerParts(config, store, destination, control, threading.Event(), timing=timing),
            ids,
        ).run()
        destination.shutdown()

        assert newest_database.slots() == []
        found = store.get_table_replication_states()
        assert {
            s.reason.partition(" for ")[0] for s in found.values() if isinstance(s, Errored)
        } == {"a group of 3 tables is copied, but"}
        assert not many(store).leased([f"table:{table_id}" for table_id in ids])
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
    assert_in_step(newest_database, config, names)


def test_a_group_stops_as_soon_as_its_slot_is_lost(
    newest_database: Database, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of its copies would be useless, as the rest of a single table's."""
    monkeypatch.setattr(slot_watch, "_EVERY_S", 0.0)
    monkeypatch.setattr(group_copy, "_TABLES_AT_ONCE", 1)
    names = create(newest_database, 3)
    config = make_config(newest_database)
    ids = [
        row[0]
        for row in newest_database.query(
            "select oid::int from pg_class where relname = any(%s)", [names]
        )
    ]

    def lose(schemas: object) -> None:
        newest_database.execute(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
            " where database = current_database()"
        )

    destination = Watching.of(config, lose)
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        store.update_table_replication_states([(table_id, Init()) for table_id in ids])
        destination.startup(store)
        control = SourceControl(config.source, application_name="test")
        parts = WorkerParts(config, store, destination, control, threading.Event())
        with closing(control):
            GroupSync(parts, ids).run()
        destination.shutdown()

        assert destination.writes == [1]
        for state in store.get_table_replication_states().values():
            assert isinstance(state, Errored)
            assert "is gone from the source while a group of tables is copied" in state.reason
            assert "etl-dagster retry --all" in state.solution
