"""What stands in the way of a pipeline is found before anything is created, and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from etl_dagster.cli.status import collect
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.errors import (
    EtlError,
    PublicationEmpty,
    PublicationMissing,
    SlotInvalidated,
    SourceAuthenticationFailed,
    SourceNotPrepared,
    SourceUnreachable,
)
from etl_dagster.runtime.checking.check import Check
from etl_dagster.runtime.checking.preflight import (
    require_ready,
    require_ready_for_all,
    run_checks,
)
from etl_dagster.source.connection import connect
from etl_dagster.source.slots import apply_slot_name, table_sync_slot_name
from etl_dagster.stores.memory import MemoryStore
from etl_dagster.words import human_bytes, names
from tests.support.database import Database
from tests.support.fan_outs import several
from tests.support.leaks import PASSWORD, make_secret

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(
        "create table orders (id int primary key, note text)",
        "create publication etl_pub for table orders",
    )
    return database


@pytest.fixture
def config(shop: Database, make_config: MakeConfig) -> PipelineConfig:
    return make_config(shop)


@pytest.fixture
def login(database: Database) -> Iterator[str]:
    """A role that may log in and nothing more."""
    name = f"{database.name}_reader"
    role = sql.Identifier(name)
    with database.connect() as admin:
        admin.execute(sql.SQL("create role {} login password {}").format(role, PASSWORD))
        yield name
        admin.execute(sql.SQL("drop owned by {}").format(role))
        admin.execute(sql.SQL("drop role {}").format(role))


def require(config: PipelineConfig) -> list[str]:
    with connect(config.source, application_name="test") as connection:
        return [table.schema.name for table in require_ready(connection, config)]


def found(config: PipelineConfig, name: str) -> Check:
    """The worst finding under this name."""
    order = {"error": 0, "warning": 1, "ok": 2}
    checks = [check for check in run_checks(config) if check.name == name]
    assert checks, f"nothing is said about {name}"
    return min(checks, key=lambda check: order[check.level])


def is_untouched(database: Database) -> bool:
    schemas = database.query("select 1 from pg_namespace where nspname = 'etl'")
    return not database.slots() and not schemas


# -- ready -------------------------------------------------------------------------------------


def test_a_source_that_is_ready_gives_its_tables(config: PipelineConfig) -> None:
    assert require(config) == ["public.orders"]


def test_a_source_that_is_ready_has_no_error(config: PipelineConfig) -> None:
    assert [check for check in run_checks(config) if check.level == "error"] == []


def test_the_preflight_changes_nothing(config: PipelineConfig, shop: Database) -> None:
    require(config)
    run_checks(config)

    assert is_untouched(shop)


def test_every_finding_says_what_to_do(config: PipelineConfig, shop: Database) -> None:
    shop.execute("drop publication etl_pub")

    for check in run_checks(config):
        assert check.message
        assert bool(check.solution) == (check.level != "ok")
        assert (check.failure is not None) == (check.level == "error")


# -- the publication ---------------------------------------------------------------------------


def test_a_missing_publication_is_named_with_the_existing_ones(
    config: PipelineConfig, shop: Database
) -> None:
    shop.execute("alter publication etl_pub rename to other_pub")

    with pytest.raises(PublicationMissing, match="it has 'other_pub'"):
        require(config)
    assert found(config, "publication").level == "error"
    assert is_untouched(shop)


def test_a_publication_without_tables_is_refused(config: PipelineConfig, shop: Database) -> None:
    shop.execute("alter publication etl_pub drop table orders")

    with pytest.raises(PublicationEmpty):
        require(config)
    assert found(config, "published tables").level == "error"


def test_tables_without_identity_are_a_warning_that_names_them_together(
    config: PipelineConfig, shop: Database
) -> None:
    shop.execute(
        "create table log (line text)",
        'create schema "My Shop"; create table "My Shop"."A" (x int primary key)',
        'alter table "My Shop"."A" replica identity nothing',
        'alter publication etl_pub add table log, "My Shop"."A"',
    )

    assert len(require(config)) == 3
    check = found(config, "replica identity")
    assert check.level == "warning"
    assert "My Shop.A, public.log" in check.message


def test_an_insert_only_publication_needs_no_identity(
    config: PipelineConfig, shop: Database
) -> None:
    shop.execute(
        "create table log (line text)",
        "alter publication etl_pub add table log",
        "alter publication etl_pub set (publish = 'insert, truncate')",
    )

    assert require(config) == ["public.log", "public.orders"]
    assert found(config, "replica identity").level == "ok"
    check = found(config, "published changes")
    assert check.level == "warning"
    assert "no update and no delete" in check.message


def test_a_table_known_by_its_whole_row_is_a_warning(
    config: PipelineConfig, shop: Database
) -> None:
    shop.execute(
        "create table log (line text); alter table log replica identity full",
        "alter publication etl_pub add table log",
    )

    assert require(config) == ["public.log", "public.orders"]
    check = found(config, "replica identity")
    assert check.level == "warning"
    assert "public.log" in check.message


def test_a_configured_table_that_is_not_published_is_a_warning(
    shop: Database, make_config: MakeConfig
) -> None:
    config = make_config(shop, tables={"public.order": {"copy": False}, "public.orders": {}})

    check = found(config, "configured tables")
    assert check.level == "warning"
    assert check.message.endswith(": public.order")
    assert require(config) == ["public.orders"]


# -- rights ------------------------------------------------------------------------------------


def as_user(shop: Database, name: str, password: str = PASSWORD) -> dict[str, str]:
    return {
        "dsn": make_conninfo(shop.dsn, user=name, password=password),
        "publication": "etl_pub",
    }


def test_a_user_without_the_right_to_replicate_is_told_the_grant(
    shop: Database, make_config: MakeConfig, login: str
) -> None:
    shop.execute(f"grant select on orders to {login}")
    config = make_config(shop, source=as_user(shop, login))

    with pytest.raises(SourceNotPrepared) as caught:
        require(config)
    assert "REPLICATION" in caught.value.solution
    assert found(config, "replication right").level == "error"


def test_a_user_without_select_is_told_the_grants(
    shop: Database, make_config: MakeConfig, login: str
) -> None:
    shop.execute(
        f"alter role {login} replication",
        "create schema hidden; create table hidden.t (id int primary key)",
        "alter publication etl_pub add table hidden.t",
    )
    config = make_config(shop, source=as_user(shop, login))

    with pytest.raises(SourceNotPrepared, match=r"schema hidden, hidden\.t, public\.orders"):
        require(config)
    solution = found(config, "read rights").solution
    assert f'GRANT USAGE ON SCHEMA "hidden" TO "{login}";' in solution
    shop.execute(*(part + ";" for part in solution.split(";") if part.strip()))
    assert require(config) == ["hidden.t", "public.orders"]


def test_the_rights_on_the_published_columns_are_enough(
    shop: Database, make_config: MakeConfig, login: str
) -> None:
    shop.execute(f"alter role {login} replication", f"grant select (id, note) on orders to {login}")
    config = make_config(shop, source=as_user(shop, login))

    assert require(config) == ["public.orders"]
    shop.execute("alter table orders add secret text")
    with pytest.raises(SourceNotPrepared, match=r"public\.orders"):
        require(config)


def test_policies_that_hide_rows_from_the_copy_are_a_warning(
    shop: Database, make_config: MakeConfig, login: str
) -> None:
    """The stream would bring changes of rows that the copy never saw."""
    shop.execute(
        f"alter role {login} replication",
        f"grant select on orders to {login}",
        "alter table orders enable row level security",
    )
    config = make_config(shop, source=as_user(shop, login))

    check = found(config, "row security")
    assert check.level == "warning"
    assert f'ALTER ROLE "{login}" BYPASSRLS;' in check.solution
    shop.execute(f"alter role {login} bypassrls")
    assert not [check for check in run_checks(config) if check.name == "row security"]


def test_a_wrong_password_is_a_finding_that_does_not_show_it(
    shop: Database, make_config: MakeConfig, login: str
) -> None:
    config = make_config(shop, source=as_user(shop, login, password=make_secret("Wr0ng-one")))

    (check,) = run_checks(config)

    assert (check.name, check.level) == ("connection", "error")
    assert isinstance(check.failure, SourceAuthenticationFailed)
    assert "Wr0ng-one" not in f"{check} {check.failure!r} {check.failure.__cause__!r}"


def test_an_unreachable_server_is_a_finding(make_config: MakeConfig, shop: Database) -> None:
    source = {"dsn": make_conninfo(shop.dsn, port=1), "publication": "etl_pub"}

    (check,) = run_checks(make_config(shop, source=source))

    assert isinstance(check.failure, SourceUnreachable)


def test_a_dsn_that_cannot_be_read_is_a_finding(make_config: MakeConfig, shop: Database) -> None:
    source = {"dsn": "host='unfinished", "publication": "etl_pub"}

    (check,) = run_checks(make_config(shop, source=source))

    assert check.level == "error"
    assert "unfinished" not in check.message


# -- what earlier runs left --------------------------------------------------------------------


def make_slot(database: Database, name: str) -> None:
    database.query("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])


def test_the_pipelines_own_slot_is_reported(config: PipelineConfig, shop: Database) -> None:
    assert "first start creates it" in found(config, "slot").message
    make_slot(shop, apply_slot_name(config.pipeline))

    assert "waits for the pipeline" in found(config, "slot").message


def test_a_slot_that_retains_much_wal_is_a_warning_in_doctor_and_status(
    shop: Database, make_config: MakeConfig
) -> None:
    config = make_config(shop, **{"source.max_retained_wal": "1MB"})
    make_slot(shop, apply_slot_name(config.pipeline))
    assert collect(config, MemoryStore())["slot"]["warning"] is None

    shop.execute("insert into orders select i, repeat('x', 100) from generate_series(1, 10000) i")

    check, slot = found(config, "slot"), collect(config, MemoryStore())["slot"]
    assert check.level == "warning"
    assert "no process reads the slot" in check.message
    for message in (check.message, slot["warning"]):
        assert "more than source.max_retained_wal (976.6 KiB)" in message
    assert slot["warned_above_bytes"] == 1_000_000


def test_a_slot_that_no_published_table_needs_is_a_warning(
    config: PipelineConfig, shop: Database
) -> None:
    ((table_id,),) = shop.query("select 'orders'::regclass::oid::bigint")
    make_slot(shop, table_sync_slot_name(config.pipeline, table_id))
    make_slot(shop, table_sync_slot_name(config.pipeline, 1))
    make_slot(shop, table_sync_slot_name("another_pipeline", 1))

    check = found(config, "table sync slots")

    assert check.level == "warning"
    assert check.message.endswith(f": {table_sync_slot_name(config.pipeline, 1)}")
    shop.execute(check.solution)
    assert not [check for check in run_checks(config) if check.name == "table sync slots"]


# -- servers that aren't set up ----------------------------------------------------------------


def start(folder: Path, **settings: str | int) -> EmbeddedPostgres:
    folder.chmod(0o755)
    return EmbeddedPostgres(folder / "data", find_servers()[0], settings=settings, durable=False)


@pytest.fixture(scope="module")
def replica_level_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with start(tmp_path_factory.mktemp("replica"), wal_level="replica") as server:
        yield server


@pytest.fixture(scope="module")
def tight_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    with start(
        tmp_path_factory.mktemp("tight"),
        max_replication_slots=1,
        max_wal_senders=1,
        max_slot_wal_keep_size="1MB",
        min_wal_size="32MB",
        wal_sender_timeout="2s",
    ) as server:
        yield server


def test_wal_level_replica_is_refused_with_the_solution(
    replica_level_server: EmbeddedPostgres, make_config: MakeConfig
) -> None:
    with Database.create(replica_level_server) as database:
        database.execute(
            "create table t (id int primary key); create publication etl_pub for table t"
        )
        config = make_config(database)

        with pytest.raises(SourceNotPrepared, match="wal_level is 'replica'") as caught:
            require(config)
        assert "ALTER SYSTEM SET wal_level = 'logical'" in caught.value.solution
        assert found(config, "wal_level").level == "error"
        assert found(config, "publication").level == "ok", "the rest is still looked at"
        assert is_untouched(database)


@pytest.fixture
def tight(tight_server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(tight_server) as database:
        database.execute(
            "create table t (id int primary key); create publication etl_pub for table t"
        )
        yield database


def test_a_server_without_a_free_slot_is_refused(tight: Database, make_config: MakeConfig) -> None:
    config = make_config(tight)
    make_slot(tight, "foreign")

    with pytest.raises(SourceNotPrepared, match=r"no replication slot is free.*1 of 1 in use"):
        require(config)
    assert found(config, "replication slots").level == "error"


def test_the_pipelines_own_slot_needs_no_free_one(tight: Database, make_config: MakeConfig) -> None:
    config = make_config(tight)
    make_slot(tight, apply_slot_name(config.pipeline))

    assert require(config) == ["public.t"]
    check = found(config, "replication slots")
    assert (check.level, "0 free, up to 4 wanted" in check.message) == ("warning", True)


def test_each_of_several_destinations_needs_a_free_slot_for_being_set_aside(
    tight: Database, tmp_path: Path
) -> None:
    config = several(tight, tmp_path).member("left")

    check = found(config, "slots to set aside")
    assert (check.level, "each of 2 destinations" in check.message) == ("warning", True)


def test_a_server_without_a_free_wal_sender_is_refused(
    tight: Database, make_config: MakeConfig
) -> None:
    config = make_config(tight)
    make_slot(tight, "foreign")
    other = psycopg.connect(make_conninfo(tight.dsn, replication="database"), autocommit=True)
    with other:
        other.pgconn.exec_(
            b"START_REPLICATION SLOT foreign LOGICAL 0/0 "
            b"(proto_version '1', publication_names 'etl_pub')"
        )
        check = found(config, "WAL senders")
        other.pgconn.finish()

    assert check.level == "error"
    assert "max_wal_senders" in check.solution


def test_settings_that_lose_slots_or_streams_are_warnings(
    tight: Database, make_config: MakeConfig
) -> None:
    config = make_config(tight)

    assert "max_slot_wal_keep_size is 1.0 MiB" in found(config, "WAL limit").message
    assert found(config, "WAL limit").level == "warning"
    assert found(config, "wal_sender_timeout").level == "warning"


def test_a_lost_slot_is_an_error(tight: Database, make_config: MakeConfig) -> None:
    config = make_config(tight)
    make_slot(tight, apply_slot_name(config.pipeline))
    for _ in range(4):
        tight.execute("select pg_logical_emit_message(false, 'x', 'x'); select pg_switch_wal()")
    tight.execute("checkpoint")

    check = found(config, "slot")

    assert isinstance(check.failure, SlotInvalidated)
    assert "etl-dagster reset" in check.solution


# -- words -------------------------------------------------------------------------------------


def test_long_lists_of_names_end_in_a_count() -> None:
    assert names(["a", "b"]) == "a, b"
    assert names([str(number) for number in range(10)]).endswith("7 and 2 more")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (3 * 1024**3, "3.0 GiB"),
        (2**50, "1024.0 TiB"),
    ],
)
def test_sizes_have_their_unit(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_a_check_as_json_holds_no_exception() -> None:
    check = Check.error("slot", EtlError("gone", solution="Look."))

    assert check.to_json() == {
        "name": "slot",
        "level": "error",
        "message": "gone",
        "solution": "Look.",
    }


def test_warnings_of_a_start_are_logged_once_for_all_destinations(
    newest_database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest_database.execute(
        "create table bare (id int)", "create publication etl_pub for table bare"
    )
    members = list(several(newest_database, tmp_path).members().values())
    with connect(members[0].source, application_name="test") as connection:
        for member in members:
            require_ready(connection, member)
        assert "bare" not in caplog.text
        require_ready_for_all(connection, members[0])
    assert caplog.text.count("public.bare") == 1
