"""States in Postgres: kept verbatim, with their history, in tables that are created once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from etl_dagster.integrations.meltano.states import session, writing
from etl_dagster.integrations.meltano.states.errors import (
    StateChanged,
    StateCorrupt,
    StateNotStorable,
    StateSchemaMissing,
    StateStorageError,
    StateStorageForbidden,
    StateStorageRefused,
    StateStorageUnreachable,
    StateTablesMissing,
    StateUriError,
    StateVersionMissing,
)
from etl_dagster.integrations.meltano.states.storage import (
    NewState,
    StateStorage,
    StorageOptions,
    locate,
)
from etl_dagster.pg.connection import Connection
from etl_dagster.source.catalog import fetch_published_tables
from tests.support.database import Database
from tests.support.leaks import make_secret
from tests.support.meltano import open_storage, role, state_uri

SECRET = make_secret("geheim")
IDLE = psycopg.pq.TransactionStatus.IDLE

#: Of the backend that had the same tables before.
EARLIER = """
    CREATE TABLE meltano_state (state_id varchar(900) PRIMARY KEY, partial_state text,
      completed_state text, updated_at timestamp DEFAULT now());
    CREATE TABLE meltano_state_locks (state_id varchar(900) PRIMARY KEY, locked_at timestamp,
      lock_id varchar(255));
    INSERT INTO meltano_state
      VALUES ('dev:old', NULL, '{"singer_state":  {"x": 1E5}}', '2026-02-01');
    INSERT INTO meltano_state_locks VALUES ('dev:old', '2026-02-01', 'crashed');
"""


@pytest.fixture
def storage(newest_database: Database) -> Iterator[StateStorage]:
    with_tables = open_storage(newest_database)
    yield with_tables
    with_tables.close()


# -- states --------------------------------------------------------------------------------------


def test_completed_and_partial_states_are_kept_verbatim(storage: StateStorage) -> None:
    text = '{ "z": 1E400, "a": 1.10, "nul": "\\u0000", "half": "\\ud800", "ü": null }'
    storage.set("exact", completed=text, partial='{"p":1}')

    stored = storage.get("exact")
    assert stored is not None
    assert (stored.completed, stored.partial) == (text, '{"p":1}')
    [again] = storage.get_all()
    assert again == stored
    assert storage.version("exact", 1).completed == text


@pytest.mark.parametrize("state_id", ["x" * 3_000, "ü" * 100_000, "a' b\n%_\\*", "🐘", " "])
def test_an_id_of_any_length_is_one_state(storage: StateStorage, state_id: str) -> None:
    storage.set(state_id, completed={"n": 1})
    storage.set(state_id, completed={"n": 2})
    storage.set(state_id + "x", completed={"n": 3})
    with storage.lock(state_id):
        stored = storage.get(state_id)
    assert stored is not None
    assert stored.completed_object() == {"n": 2}
    assert storage.list_ids() == [state_id, state_id + "x"]
    assert [version.version for version in storage.history(state_id)] == [2, 1]


def test_a_state_that_cannot_be_stored_changes_nothing(storage: StateStorage) -> None:
    storage.set("a", completed={"n": 1})
    with pytest.raises(StateNotStorable):
        storage.set("a", completed={"n": float("nan")})
    with pytest.raises(StateNotStorable):
        storage.set_all([NewState("b", completed={}), NewState("c", completed={"n": float("inf")})])
    assert storage.list_ids() == ["a"]


def test_a_partial_state_is_merged_and_the_completed_one_stays(storage: StateStorage) -> None:
    storage.set("a", completed='{"n":  1}')
    storage.merge("a", {"singer_state": {"bookmarks": {"x": 1}}})
    storage.merge("a", {"singer_state": {"bookmarks": {"y": 2}}})

    stored = storage.get("a")
    assert stored is not None
    assert stored.completed == '{"n":  1}'
    assert stored.partial_object() == {"singer_state": {"bookmarks": {"x": 1, "y": 2}}}


def test_a_write_for_another_version_is_refused(storage: StateStorage) -> None:
    storage.set("a", completed={"n": 1}, expected_version=0)
    storage.set("a", completed={"n": 2}, expected_version=1)
    for wrong in (0, 1, 3):
        with pytest.raises(StateChanged):
            storage.set("a", completed={"n": 3}, expected_version=wrong)
    with pytest.raises(StateChanged):
        storage.set("b", completed={"n": 3}, expected_version=1)
    assert storage.list_ids() == ["a"]


def test_patterns_are_exact(storage: StateStorage) -> None:
    ids = ["dev:tap_a", "dev:tapXa", "dev:tap%a", "Dev:tap_a", "prod:tap_a"]
    assert storage.set_all(NewState(state_id) for state_id in ids) == 5

    assert storage.list_ids("dev:tap_*") == ["dev:tap_a"]
    assert storage.list_ids("dev:tap[_%]a") == ["dev:tap%a", "dev:tap_a"]
    assert storage.list_ids("*:tap?a") == ["Dev:tap_a", *sorted(ids[:3]), "prod:tap_a"]
    assert [stored.state_id for stored in storage.get_all("prod:*")] == ["prod:tap_a"]
    assert storage.list_ids() == storage.list_ids("*") == sorted(ids)


def test_many_states_are_written_in_one_transaction(
    storage: StateStorage, newest_database: Database
) -> None:
    storage.set("b", completed={"n": 0})
    states = [NewState(f"{n}", {"p": n}, {"c": n}) for n in range(1_000)]
    assert storage.set_all(iter([NewState("0", None, {"first": 1}), *states])) == 1_000
    assert storage.set_all([]) == 0

    assert len(storage.get_all()) == 1_001
    [(count,)] = newest_database.query(
        "SELECT count(DISTINCT xmin::text) FROM meltano_state WHERE state_id <> 'b'"
    )
    assert count == 1
    assert storage.clear_all() == 1_001
    assert storage.list_ids() == []


def test_each_of_many_states_is_written_unless_it_changed_or_is_being_written(
    storage: StateStorage, newest_database: Database
) -> None:
    storage.set("a", completed={"n": 0})
    storage.set("b", completed={"n": 0})
    storage.set("b", completed={"n": 1})
    storage.set("gone", completed={"n": 0})
    storage.delete("gone")
    states = [
        NewState("a", None, {"n": 9}, 1),
        NewState("b", None, {"n": 9}, 1),
        NewState("busy", {"n": 9}, None, 0),
        NewState("gone", {"n": 9}, None, 0),
        NewState("missing", {"n": 9}, None, 4),
        NewState("new", {"n": 9}, None, 0),
    ]
    with closing(StateStorage(storage.location)) as other, other.lock("busy"):
        assert other.get("busy") is None
        written = storage.set_each(states, operation="several")
        assert written == {"a": 2, "gone": 3, "new": 1}
    assert storage.set_each(states) == {"busy": 1}

    found = {state.state_id: state for state in storage.get_all()}
    versions = {state_id: state.version for state_id, state in found.items()}
    assert versions == {"a": 2, "b": 2, "busy": 1, "gone": 3, "new": 1}
    assert (found["a"].partial, found["a"].completed_object()) == (None, {"n": 9})
    assert (found["new"].partial_object(), found["new"].completed) == ({"n": 9}, None)
    assert [v.operation for v in storage.history("a")] == ["several", "set"]
    assert storage.set_each([]) == {}
    unkept = [NewState("a", None, {"n": 10}, 2, is_kept=False), NewState("b", {"n": 10}, None, 2)]
    assert storage.set_each(unkept) == {"a": 3, "b": 3}
    assert [v.version for v in storage.history("a")] == [2, 1]
    assert [v.version for v in storage.history("b")] == [3, 2, 1]


# -- history -------------------------------------------------------------------------------------


def test_every_write_is_in_the_history(newest_database: Database) -> None:
    run = ""
    storage = StateStorage(locate(state_uri(newest_database)), writer="me", run_id=lambda: run)
    run = "run-1"
    storage.set("a", completed={"n": 1})
    run = "run-2"
    storage.merge("a", {"p": 1})
    run = "run-3"
    storage.set_all([NewState("a", None, {"n": 3})])
    run = "run-4"
    assert storage.delete("a")
    run = "run-5"
    assert not storage.delete("a")
    run = "run-6"
    storage.set("a", completed={"n": 5})

    history = storage.history("a")
    assert [(v.version, v.operation, v.run_id) for v in history] == [
        (5, "set", "run-6"),
        (4, "delete", "run-4"),
        (3, "import", "run-3"),
        (2, "merge", "run-2"),
        (1, "set", "run-1"),
    ]
    assert {v.writer for v in history} == {"me"}
    assert history[0].written_at > history[-1].written_at
    assert storage.history("a", limit=1) == history[:1]
    storage.close()


def test_an_earlier_version_is_restored_verbatim(storage: StateStorage) -> None:
    storage.set("a", completed='{"n":  1E5}', partial={"p": 1})
    storage.set("a", completed={"n": 2})
    assert [change.path for change in storage.diff("a", 1)] == ["completed.n", "partial.p"]

    storage.restore("a", 1, expected_version=2)
    stored = storage.get("a")
    assert stored is not None
    assert (stored.completed, stored.version) == ('{"n":  1E5}', 3)
    assert storage.diff("a", 1) == []

    storage.delete("a")
    storage.restore("a", 2)
    storage.restore("a", 4)  # that is the deletion
    assert storage.get("a") is None
    with pytest.raises(StateVersionMissing):
        storage.restore("a", 99)
    with pytest.raises(StateChanged):
        storage.restore("a", 1, expected_version=7)


def test_the_last_old_version_of_each_run_is_kept(newest_database: Database) -> None:
    options = StorageOptions(history_versions=10, history_days=1)
    location = locate(state_uri(newest_database))
    for run in ("first", "second", "third"):
        storage = StateStorage(location, options=options, run_id=run, writer="me")
        for n in range(20):
            storage.set("a", completed={"run": run, "n": n})
    # Pruned at version 48: 39 and later are the newest ten of that moment.
    versions = [version.version for version in storage.history("a")]
    assert versions == [*range(60, 38, -1), 20]

    newest_database.execute("UPDATE meltano_state_history SET written_at = now() - interval '2 d'")
    for n in range(4):
        storage.set("a", completed={"n": n})
    assert [version.version for version in storage.history("a")] == [*range(64, 54, -1)]
    storage.close()


def test_versions_that_were_not_kept_do_not_push_others_out(newest_database: Database) -> None:
    """The mirror of positions moves every few seconds, and keeps the steps between only."""
    location = locate(state_uri(newest_database))
    steps = StateStorage(
        location, options=StorageOptions(history_versions=10, history_days=1), writer="me"
    )
    moves = StateStorage(location, options=StorageOptions(history_versions=0), writer="me")
    for n in range(8):
        for move in range(15):
            moves.set("a", completed={"step": n, "move": move})
        steps.set("a", completed={"step": n})  # and prunes, at each sixteenth version

    assert [version.version for version in steps.history("a")] == [*range(128, 0, -16)]
    steps.close()
    moves.close()


def test_a_storage_without_history_keeps_none(newest_database: Database) -> None:
    storage = open_storage(newest_database, history_versions=0)
    storage.set("a", completed={"n": 1})
    storage.delete("a")
    storage.set_all([NewState("b")])
    storage.clear_all()
    assert newest_database.query("SELECT count(*) FROM meltano_state_history") == [(0,)]
    storage.close()


def test_a_corrupt_row_is_named_and_left_alone(
    storage: StateStorage, newest_database: Database
) -> None:
    storage.set("good", completed={"n": 1})
    storage.set("bad", completed={"n": 1})
    newest_database.execute("UPDATE meltano_state SET partial_state = '{oops' WHERE state_id='bad'")

    with pytest.raises(StateCorrupt, match="'bad' is not JSON"):
        storage.merge("bad", {"p": 1})
    stored = storage.get("bad")
    assert stored is not None
    assert stored.partial == "{oops"
    assert storage.list_ids() == ["bad", "good"]
    storage.restore("bad", 1)
    restored = storage.get("bad")
    assert restored is not None
    assert restored.merged() == {"n": 1}


# -- tables --------------------------------------------------------------------------------------


def test_concurrent_first_starts_create_the_tables_once(newest_database: Database) -> None:
    barrier = threading.Barrier(12)

    def start() -> int:
        storage = open_storage(newest_database)
        barrier.wait(30)
        count = storage.migrate()
        storage.close()
        return count

    with ThreadPoolExecutor(12) as pool:
        counts = [future.result(60) for future in [pool.submit(start) for _ in range(12)]]
    assert sorted(counts) == [0] * 11 + [1]


def test_a_role_without_create_uses_tables_that_are_there(newest_database: Database) -> None:
    newest_database.execute("CREATE SCHEMA states")
    admin = open_storage(newest_database, "states")
    admin.migrate()
    grants = (
        "GRANT USAGE ON SCHEMA states TO {role}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON states.meltano_state, "
        "states.meltano_state_locks TO {role}",
        "GRANT SELECT, INSERT, DELETE ON states.meltano_state_history TO {role}",
    )
    with role(newest_database, *grants) as (user, password):
        uri = state_uri(newest_database, "states", user=user, password=password)
        storage = StateStorage.from_uri(uri)
        with storage.lock("a"):
            storage.set("a", completed={"n": 1})
        storage.merge("a", {"p": 1})
        assert storage.set_all([NewState("b")]) == 1
        assert storage.delete("a")
        assert storage.clear_all() == 1
        storage.close()
    admin.close()


def test_a_role_that_may_only_read_reads(newest_database: Database) -> None:
    admin = open_storage(newest_database)
    admin.set("a", completed={"n": 1})
    with role(newest_database, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}") as login:
        storage = StateStorage.from_uri(
            state_uri(newest_database, user=login[0], password=login[1])
        )
        assert storage.get("a") == admin.get("a")
        assert storage.list_ids("*a") == ["a"]
        assert len(storage.history("a")) == 1
        admin.require_writable()
        with pytest.raises(StateStorageForbidden, match=r"no UPDATE on .*meltano_state"):
            storage.require_writable()
        writes: list[Any] = [
            lambda: storage.set("a", completed={"n": 2}),
            lambda: storage.delete("a"),
            lambda: storage.clear_all(),
            lambda: storage.lock("a").__enter__(),
        ]
        for write in writes:
            with pytest.raises(StateStorageForbidden) as refused:
                write()
            assert "GRANT" in refused.value.solution
        storage.close()
    stored = admin.get("a")
    assert stored is not None
    assert stored.version == 1
    admin.close()


def test_a_read_only_server_is_reported(newest_database: Database) -> None:
    open_storage(newest_database).set("a", completed={"n": 1})
    name = newest_database.name
    newest_database.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    storage = open_storage(newest_database)
    assert storage.list_ids() == ["a"]
    with pytest.raises(StateStorageForbidden, match="read only"):
        storage.set("a", completed={"n": 2})
    with pytest.raises(StateStorageForbidden, match="default_transaction_read_only is on"):
        storage.require_writable()


def test_missing_tables_that_may_not_be_created_are_reported(newest_database: Database) -> None:
    newest_database.execute("CREATE SCHEMA states")
    with role(newest_database, "GRANT USAGE ON SCHEMA states TO {role}") as (user, password):
        uri = state_uri(newest_database, "states", user=user, password=password)
        with pytest.raises(StateTablesMissing, match="may not create them") as refused:
            StateStorage.from_uri(uri).list_ids()
        assert f'GRANT USAGE, CREATE ON SCHEMA "states" TO "{user}"' in refused.value.solution
    with pytest.raises(StateTablesMissing, match="must not be created here"):
        open_storage(newest_database, "states", create_tables=False).list_ids()


def test_a_missing_schema_is_not_created_unless_requested(newest_database: Database) -> None:
    with pytest.raises(StateSchemaMissing, match="'tpyo' does not exist") as refused:
        open_storage(newest_database, "tpyo").list_ids()
    assert "'public'" in refused.value.reason
    assert open_storage(newest_database, "own", create_schema=True).list_ids() == []


@pytest.mark.parametrize("schema", ["MyCase", 'we"ird; DROP TABLE x', "ü"])
def test_a_schema_has_exactly_the_name_given(newest_database: Database, schema: str) -> None:
    storage = StateStorage(
        locate(state_uri(newest_database), schema=schema),
        state_table="State",
        locks_table="lo cks",
        options=StorageOptions(create_schema=True),
    )
    storage.set("a", completed={"n": 1})
    rows = newest_database.query(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s ORDER BY 1", [schema]
    )
    assert [name for (name,) in rows] == ["State", "State_history", "State_migrations", "lo cks"]
    storage.close()


def test_states_of_other_schemas_tables_and_databases_are_kept_apart(
    newest_database: Database,
) -> None:
    """They share neither states nor locks."""
    newest_database.execute("CREATE SCHEMA one; CREATE SCHEMA two")
    with Database.create(newest_database.server) as other:
        storages = [
            open_storage(newest_database, "one", lock_wait_seconds=0),
            open_storage(newest_database, "two", lock_wait_seconds=0),
            StateStorage(
                locate(state_uri(newest_database, "one")),
                state_table="other",
                locks_table="other_locks",
                options=StorageOptions(lock_wait_seconds=0),
            ),
            open_storage(other, lock_wait_seconds=0),
        ]

        def write_under_all_locks(depth: int = 0) -> None:
            if depth == len(storages):
                return
            with storages[depth].lock("a"), storages[depth].run_lease("a"):
                assert storages[depth].get("a") is None
                storages[depth].set("a", completed={"n": depth})
                write_under_all_locks(depth + 1)

        write_under_all_locks()
        for depth, storage in enumerate(storages):
            assert [stored.completed_object() for stored in storage.get_all()] == [{"n": depth}]
            storage.close()


def test_tables_of_the_earlier_backend_are_taken_over(newest_database: Database) -> None:
    newest_database.execute(EARLIER)
    storage = open_storage(newest_database, lock_wait_seconds=0)

    stored = storage.get("dev:old")
    assert stored is not None
    assert stored.completed == '{"singer_state":  {"x": 1E5}}'
    assert stored.updated_at.year == 2026
    assert [version.operation for version in storage.history("dev:old")] == ["import"]
    with storage.lock("dev:old"):  # the crashed one's lock is not one of ours
        storage.set("dev:old", completed={"n": 2})
    # Nothing is thrown away.
    kept = newest_database.query("SELECT count(*) FROM meltano_state_before_etl_dagster")
    assert kept == [(1,)]
    storage.close()


def test_an_unrelated_table_of_the_same_name_is_left_alone(newest_database: Database) -> None:
    newest_database.execute("CREATE TABLE meltano_state (id int)")
    with pytest.raises(StateTablesMissing, match="etl_dagster did not create"):
        open_storage(newest_database).list_ids()
    assert newest_database.query("SELECT count(*) FROM meltano_state") == [(0,)]


@pytest.mark.parametrize("gone", ["meltano_state_history", "meltano_state_migrations"])
def test_tables_of_which_a_part_was_restored_are_named(
    newest_database: Database, gone: str
) -> None:
    """The record of migrations would have said that there is nothing to create."""
    open_storage(newest_database).set("a", completed={"n": 1})
    newest_database.execute(f"DROP TABLE {gone}")
    with pytest.raises(StateTablesMissing, match=f"has meltano_state, .*but not {gone}$") as told:
        open_storage(newest_database).migrate()
    assert "Restore the missing tables" in told.value.solution
    assert newest_database.query("SELECT count(*) FROM meltano_state") == [(1,)]


def test_a_place_is_known_also_where_the_server_keeps_its_identity_to_itself(
    newest_database: Database,
) -> None:
    newest_database.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    with role(newest_database, "GRANT USAGE ON SCHEMA public TO {role}") as (user, password):
        uri = state_uri(newest_database, user=user, password=password)
        with closing(StateStorage.from_uri(uri)) as storage:
            assert newest_database.name in storage.place()


def test_tables_of_a_newer_version_are_not_touched(newest_database: Database) -> None:
    open_storage(newest_database).migrate()
    newest_database.execute("INSERT INTO meltano_state_migrations VALUES (9999, 'future')")
    with pytest.raises(StateStorageError, match="migration 9999") as refused:
        open_storage(newest_database).list_ids()
    assert "Upgrade etl-dagster" in refused.value.solution


def test_the_source_does_not_replicate_states(newest_database: Database) -> None:
    """A backend in the source itself, under FOR ALL TABLES: each batch would cause the next."""
    newest_database.execute("CREATE SCHEMA s; CREATE TABLE items (id int PRIMARY KEY)")
    for schema in ("public", "s"):
        open_storage(newest_database, schema).migrate()
    StateStorage(
        locate(state_uri(newest_database)), state_table="own", locks_table="own_locks"
    ).migrate()
    newest_database.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    with newest_database.connect() as connection:
        tables = fetch_published_tables(connection, "everything")
    assert [table.schema.name for table in tables] == ["public.items"]


def test_states_are_written_under_a_publication_of_all_tables(newest_database: Database) -> None:
    """Postgres refuses updates and deletes of a published table without a replica identity."""
    newest_database.execute("CREATE PUBLICATION everything FOR ALL TABLES")
    storage = open_storage(newest_database, history_versions=1)
    for n in range(20):
        storage.set("a", completed={"n": n})
    assert len(storage.history("a")) < 20  # old ones were deleted
    storage.merge("a", {"m": 1})
    with storage.lock("a"), storage.run_lease("a"):
        storage.set("a", completed={"n": 4})
    assert storage.set_all([NewState("a", completed={"n": 5}), NewState("b")]) == 2
    assert storage.delete("a")
    storage.restore("a", 22)
    assert storage.clear_all() == 2
    storage.close()


# -- connections ---------------------------------------------------------------------------------


def test_a_wrong_password_a_wrong_database_and_no_server_are_told_apart(
    newest_database: Database,
) -> None:
    cases: list[tuple[str, type[StateStorageError]]] = [
        (state_uri(newest_database, password=SECRET), StateStorageRefused),
        (state_uri(newest_database, password=SECRET, name="nope"), StateStorageRefused),
        (state_uri(newest_database) + "?sslmode=require", StateStorageRefused),
        (state_uri(newest_database, password=SECRET, port=1), StateStorageUnreachable),
    ]
    for uri, expected in cases:
        with pytest.raises(expected) as refused:
            StateStorage.from_uri(uri).list_ids()
        assert SECRET not in refused.value.reason + refused.value.solution
        assert refused.value.__suppress_context__


def test_a_timeout_and_a_wrong_option_are_not_reported_as_an_unreachable_server(
    storage: StateStorage, newest_database: Database
) -> None:
    storage.migrate()
    uri = state_uri(newest_database, "public")
    with pytest.raises(StateStorageRefused, match='parameter "nonsense"') as refused:
        StateStorage.from_uri(f"{uri}?options=-c%20nonsense%3D1").list_ids()
    assert "state_backend.postgres.options" in refused.value.solution
    with newest_database.connect(autocommit=False) as other:
        other.execute("LOCK TABLE meltano_state")
        hurried = StateStorage.from_uri(f"{uri}?options=-c%20statement_timeout%3D50ms")
        with pytest.raises(StateStorageError, match="statement timeout") as gave_up:
            hurried.list_ids()
    assert "statement_timeout" in gave_up.value.solution
    assert not isinstance(gave_up.value, StateStorageUnreachable)


def test_a_password_may_be_encoded_in_the_uri_or_come_from_libpqs_own_places(
    newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = make_secret("p@ss/w:o#r%d ü")
    with role(newest_database) as (user, _):
        newest_database.execute(f"ALTER ROLE {user} PASSWORD '{password}'")
        newest_database.execute(f"GRANT CREATE ON SCHEMA public TO {user}")
        uri = state_uri(newest_database, "public", user=user, password=password)
        assert StateStorage.from_uri(uri).list_ids() == []

        without = uri.replace(f":{quote(password, safe='')}@", "@")
        assert without != uri
        with pytest.raises(StateStorageRefused, match="no password supplied"):
            StateStorage.from_uri(without).list_ids()
        with monkeypatch.context() as environ:
            environ.setenv("PGPASSWORD", password)
            assert StateStorage.from_uri(without).list_ids() == []
        file = tmp_path / "pgpass"
        file.write_text(f"*:*:*:{user}:{password.replace(':', chr(92) + ':')}\n")
        file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(file))
        assert StateStorage.from_uri(without).list_ids() == []


def test_a_dropped_connection_is_replaced(storage: StateStorage, newest_database: Database) -> None:
    storage.set("a", completed={"n": 1})
    drop_all(newest_database)
    storage.set("a", completed={"n": 2})
    drop_all(newest_database)
    stored = storage.get("a")
    assert stored is not None
    assert stored.version == 2


def test_a_connection_dropped_while_holding_the_lock_loses_nothing(
    storage: StateStorage, newest_database: Database
) -> None:
    """The transaction is repeated, provided that the state is still as it was read."""
    storage.set("a", completed={"n": 1})
    with storage.lock("a"):
        assert storage.get("a") is not None
        drop_all(newest_database)
        storage.set("a", completed={"n": 2})
        drop_all(newest_database)
        storage.merge("a", {"p": 3})
        drop_all(newest_database)
    stored = storage.get("a")
    assert stored is not None
    assert stored.merged() == {"n": 2, "p": 3}
    assert storage.locks() == []


def test_a_write_whose_answer_is_lost_is_not_done_twice(
    storage: StateStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has committed, and the connection breaks before it can answer."""
    storage.migrate()
    send = writing.send
    answers_to_lose = 0

    def send_and_lose(connection: Connection, *statements: writing.Statement) -> list[Any]:
        nonlocal answers_to_lose
        rows = send(connection, *statements)
        if connection.info.transaction_status == IDLE and answers_to_lose:
            answers_to_lose -= 1
            connection.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return rows

    def set_under_the_lock() -> None:
        with storage.lock("a"):
            assert storage.get("a") is not None
            storage.set("a", completed={"n": 4})

    def delete_under_the_lock() -> None:
        with storage.lock("a"):
            assert storage.get("a") is not None
            storage.delete("a")

    monkeypatch.setattr(writing, "send", send_and_lose)
    monkeypatch.setattr(session, "send", send_and_lose)
    for write in (
        lambda: storage.set("a", completed={"n": 1}, expected_version=0),
        lambda: storage.set_all([NewState("a", None, {"n": 2})]),
        lambda: storage.set_each([NewState("a", None, {"n": 3}, 2)]),
        set_under_the_lock,
        delete_under_the_lock,
    ):
        answers_to_lose = 1
        write()
        assert answers_to_lose == 0
    done = [(version.version, version.operation) for version in storage.history("a")]
    assert done == [(5, "delete"), (4, "set"), (3, "set"), (2, "import"), (1, "set")]
    assert storage.locks() == []


def test_a_state_that_another_process_wrote_meanwhile_is_not_overwritten(
    storage: StateStorage, newest_database: Database
) -> None:
    storage.set("a", completed={"n": 1})

    def write() -> None:
        with storage.lock("a"):
            storage.get("a")
            drop_all(newest_database)
            newest_database.execute("UPDATE meltano_state SET version = version + 1")
            storage.set("a", completed={"n": 2})

    with pytest.raises(StateChanged):
        write()
    stored = storage.get("a")
    assert stored is not None
    assert stored.completed_object() == {"n": 1}


def test_an_error_in_the_block_undoes_what_it_wrote(storage: StateStorage) -> None:
    storage.set("a", completed={"n": 1})

    def fail() -> None:
        with storage.lock("a"):
            storage.set("a", completed={"n": 2})
            assert storage.delete("a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    stored = storage.get("a")
    assert stored is not None
    assert stored.completed_object() == {"n": 1}
    assert storage.locks() == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"lock_timeout_seconds": 0},
        {"lock_retry_seconds": -1},
        {"history_versions": -1},
        {"history_days": -1},
    ],
)
def test_a_wrong_option_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(StateUriError, match=next(iter(wrong))):
        StorageOptions(**wrong)


def test_a_table_name_that_postgres_would_cut_is_refused() -> None:
    with pytest.raises(StateUriError, match="bytes"):
        StateStorage(locate("postgres://h/db"), state_table="x" * 60)


def drop_all(database: Database) -> None:
    """End every other connection to the database, and wait until they are gone."""
    database.query(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
