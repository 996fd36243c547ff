"""Source, state store and destination that don't belong together are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.cli.checks import check_destination
from etl_dagster.config import PipelineConfig
from etl_dagster.destinations.duckdb import DuckDBDestination
from etl_dagster.destinations.duckdb.file import lock_of
from etl_dagster.destinations.memory import MemoryDestination
from etl_dagster.errors import (
    CopyMissing,
    DestinationReplaced,
    DestinationRestored,
    DestinationShared,
    EtlError,
    StoreRestored,
)
from etl_dagster.model.destination import Destination
from etl_dagster.model.states import Init, Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.copying.table_sync import TableSync
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.stores.memory import MemoryStore
from tests.support.commands import call, write_etl_yaml
from tests.support.database import Database
from tests.support.pipelines import assert_table_in_step, rows, running

pytestmark = pytest.mark.servers("newest")

MakeConfig = Callable[..., PipelineConfig]

TABLES = (
    "create table items (id int primary key, n int not null)",
    "insert into items select i, 0 from generate_series(1, 100) i",
    "create table other (id int primary key)",
    "create publication etl_pub for table items, other",
)


@pytest.fixture
def config(database: Database, make_config: MakeConfig) -> PipelineConfig:
    database.execute(*TABLES)
    return make_config(database)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "test.duckdb"


@pytest.fixture
def store(config: PipelineConfig) -> Iterator[CoordinatingStore]:
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        yield store


def catch_up(config: PipelineConfig, destination: Destination | None = None) -> None:
    with running(config, destination=destination) as pipeline:
        assert pipeline.wait_until_caught_up(60)


def insert(database: Database, key: int) -> None:
    database.execute(f"insert into items values ({key}, 1)")


def copy_file(path: Path, to: Path) -> None:
    """While no process has it open, with what DuckDB has not yet moved into it."""
    with lock_of(path).acquire(timeout=60):
        shutil.copy(path, to)
        log = path.with_name(f"{path.name}.wal")
        if log.exists():
            shutil.copy(log, to.with_name(f"{to.name}.wal"))


def build_other(path: Path) -> None:
    """A file of another pipeline's."""
    other = DuckDBDestination(path)
    other.startup(MemoryStore())
    other.shutdown()


def assert_refused(
    config: PipelineConfig, kind: type[EtlError], match: str, *, doctor: bool = True
) -> None:
    """The pipeline and the doctor refuse; nothing is written, and the advice names a way back."""
    with pytest.raises(kind, match=match) as refused, running(config):
        pass
    assert "etl-dagster reset --all" in refused.value.solution
    if doctor:
        check = check_destination(config)
        assert check.level == "error"
        assert isinstance(check.failure, kind)


def reset_all(config: PipelineConfig, store: CoordinatingStore) -> None:
    store.reset_for_resync()


def test_a_missing_older_or_different_file_is_refused(
    database: Database, config: PipelineConfig, store: CoordinatingStore, file: Path, tmp_path: Path
) -> None:
    catch_up(config)
    copy_file(file, tmp_path / "older")
    insert(database, 1001)
    catch_up(config)
    file.rename(tmp_path / "newest")
    insert(database, 1002)

    assert_refused(config, DestinationReplaced, "empty or missing")
    assert not file.exists()

    file.touch()
    assert_refused(config, DestinationReplaced, "empty or missing")

    copy_file(tmp_path / "older", file)
    assert_refused(config, DestinationRestored, "older copy")
    assert rows(config, "select count(*) from public.items") == [(100,)]

    file.unlink()
    build_other(file)
    assert_refused(config, DestinationReplaced, "is not the destination")

    # The right file, also at another place.
    moved = tmp_path / "elsewhere.duckdb"
    (tmp_path / "newest").rename(moved)
    there = config.model_copy(
        update={"destination": config.destination.model_copy(update={"path": moved})}
    )
    catch_up(there)
    assert_table_in_step(database, there, "items")
    known = store.get_known_destination()  # type: ignore[attr-defined]
    assert known.place == str(moved)

    # Or everything is copied again, into a file without a record.
    file.unlink()
    reset_all(config, store)
    catch_up(config)
    assert_table_in_step(database, config, "items")


def test_an_older_file_is_repaired_on_request(
    newest_database: Database, make_config: MakeConfig, file: Path, tmp_path: Path
) -> None:
    """The stream does not bring again what was written after the backup."""
    database = newest_database
    database.execute(*TABLES)
    config = make_config(database)
    catch_up(config)
    copy_file(file, tmp_path / "older")
    insert(database, 1001)
    database.execute("update items set n = 7 where id = 3", "delete from items where id = 4")
    catch_up(config)
    copy_file(tmp_path / "older", file)
    with pytest.raises(DestinationRestored) as refused:
        catch_up(config)
    assert "`etl-dagster repair --all`" in refused.value.solution

    printed = call("repair", write_etl_yaml(database, config, tmp_path), "--all", "--yes", "--json")
    assert json.loads(printed) == {"tables": [], "repaired_at_next_start": [config.pipeline]}
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            insert(database, 1002)
            assert pipeline.wait_until_caught_up(60)
        [items] = [s.id for s in store.get_table_schemas() if s.name == "public.items"]
        outcome = store.get_note(f"repaired {items}")
    assert outcome is not None
    counted = (outcome["missing"], outcome["extra"], outcome["changed"])
    assert (outcome["by"], counted) == ("ranges", (1, 1, 1))
    for table in ("items", "other"):
        assert_table_in_step(database, config, table)


def test_a_file_of_an_earlier_version_gets_a_mark(
    database: Database, config: PipelineConfig, store: CoordinatingStore, file: Path
) -> None:
    import duckdb

    catch_up(config)
    with duckdb.connect(str(file)) as connection:
        connection.execute("drop table _etl.identity; drop table _etl.pipelines")
    store.store_known_destination(None)  # type: ignore[attr-defined]
    insert(database, 1001)

    catch_up(config)

    assert_table_in_step(database, config, "items")
    mark = build_destination(config).read_mark("test")  # type: ignore[attr-defined]
    assert mark.identity
    assert store.get_known_destination().identity == mark.identity  # type: ignore[attr-defined]


def test_without_a_record_the_copies_reveal_a_wrong_file(
    database: Database, config: PipelineConfig, store: CoordinatingStore, file: Path
) -> None:
    """So it is with a store of an earlier version, or with only the three small contracts."""
    catch_up(config)
    store.store_known_destination(None)  # type: ignore[attr-defined]
    file.unlink()
    assert_refused(config, CopyMissing, "complete copy of public.items, public.other")


def test_a_table_copied_after_the_backup_is_found_missing(
    database: Database, config: PipelineConfig, store: CoordinatingStore, file: Path, tmp_path: Path
) -> None:
    """Only the copy makes the difference; no batch was written after it."""
    catch_up(config)
    copy_file(file, tmp_path / "older")
    [items] = [s.id for s in store.get_table_schemas() if s.name == "public.items"]
    store.request_copy(items)
    catch_up(config)
    known = store.get_known_destination()  # type: ignore[attr-defined]
    copy_file(tmp_path / "older", file)
    mark = build_destination(config).read_mark("test")  # type: ignore[attr-defined]
    # Even if as many batches were written to it.
    store.store_known_destination(known.at(mark))  # type: ignore[attr-defined]

    assert_refused(config, CopyMissing, "complete copy of public.items,")

    store.request_copy(items)
    catch_up(config)
    assert_table_in_step(database, config, "items")


@pytest.mark.parametrize("change", ["removed", "another", "older", "overwritten"])
def test_a_file_replaced_while_running_ends_the_pipeline(
    database: Database, config: PipelineConfig, file: Path, tmp_path: Path, change: str
) -> None:
    def exchange(pipeline: Pipeline) -> None:
        insert(database, 1001)
        assert pipeline.wait_until_caught_up(60)
        match change:
            case "removed":
                file.unlink()
            case "another":
                build_other(tmp_path / "another")
                (tmp_path / "another").replace(file)
            case "older":
                (tmp_path / "older").replace(file)
            case _:
                with lock_of(file).acquire(timeout=60):  # while no process has it open
                    shutil.copy(tmp_path / "older", file)
        insert(database, 1002)
        pipeline.wait(60)

    catch_up(config)
    copy_file(file, tmp_path / "older")
    refusals = (DestinationReplaced, DestinationRestored)
    with pytest.raises(refusals, match=r"was (removed|replaced|exchanged)"), running(config) as it:
        exchange(it)
    assert file.exists() == (change != "removed")


def test_a_second_pipeline_in_one_file_is_refused(
    config: PipelineConfig, store: CoordinatingStore, make_config: MakeConfig, database: Database
) -> None:
    """It may read another database, in which other tables have the same OIDs."""
    catch_up(config)
    second = make_config(database, pipeline="second")

    with pytest.raises(DestinationShared, match="holds the tables of the pipeline 'test'"):
        catch_up(second)
    assert check_destination(second).level == "error"
    assert not [slot for slot in database.slots() if "second" in slot]

    catch_up(config)
    assert_table_in_step(database, config, "items")


def test_another_type_of_destination_is_refused(
    config: PipelineConfig, make_config: MakeConfig, database: Database
) -> None:
    catch_up(config)
    memory = make_config(database, destination={"type": "memory"})
    with pytest.raises(DestinationReplaced, match=r"has written to duckdb .* names memory$"):
        catch_up(memory)


def test_a_memory_destination_that_was_lost_is_refused(
    make_config: MakeConfig, database: Database, config: PipelineConfig
) -> None:
    memory = make_config(database, destination={"type": "memory"})
    destination = MemoryDestination()
    catch_up(memory, destination)
    catch_up(memory, destination)  # the same object continues

    with pytest.raises(DestinationReplaced, match="is not the destination"), running(memory):
        pass


def test_a_store_that_was_restored_is_refused(
    database: Database, config: PipelineConfig, store: CoordinatingStore
) -> None:
    catch_up(config)
    tables = ("pipelines", "table_states", "replication_progress", "known_destinations")
    database.execute(*(f"create table public.old_{t} as table etl.{t}" for t in tables))
    insert(database, 1001)
    catch_up(config)
    database.execute(
        "update etl.pipelines p set epoch = o.epoch from public.old_pipelines o"
        " where o.name = p.name"
    )
    assert_refused(config, StoreRestored, "has no record of")

    database.execute(
        f"update etl.pipelines set epoch = {2**60}",
        "update etl.replication_progress set flush_lsn = '0/10' where worker = 'apply'",
    )
    assert_refused(config, StoreRestored, "was at .*, and is at 0/10 now")

    reset_all(config, store)
    catch_up(config)
    assert_table_in_step(database, config, "items")


def test_a_copy_into_another_file_is_refused_before_it_begins(
    config: PipelineConfig, store: CoordinatingStore, tmp_path: Path
) -> None:
    elsewhere = config.model_copy(
        update={
            "destination": config.destination.model_copy(update={"path": tmp_path / "pod.duckdb"})
        }
    )
    with running(config, copies="elsewhere"):
        destination = build_destination(elsewhere)
        destination.startup(store)
        for table_id in store.get_table_replication_states():
            with pytest.raises(DestinationReplaced, match=r"is not the destination .*test.duckdb"):
                TableSync(elsewhere, store, destination, table_id).run()
            assert isinstance(store.get_table_replication_state(table_id), Init)
        destination.shutdown()


def test_a_copy_into_a_copy_of_the_file_is_not_taken_over(
    database: Database, config: PipelineConfig, store: CoordinatingStore, tmp_path: Path, file: Path
) -> None:
    """An image of a machine holds the file: by its mark alone it is the right one."""
    catch_up(config)
    copy_file(file, tmp_path / "pod.duckdb")
    elsewhere = config.model_copy(
        update={
            "destination": config.destination.model_copy(update={"path": tmp_path / "pod.duckdb"})
        }
    )
    [items] = [s.id for s in store.get_table_schemas() if s.name == "public.items"]
    with running(config, copies="elsewhere"):
        # The start itself is a batch, so that an older image is told from the file.
        copy_file(file, tmp_path / "pod.duckdb")
        destination = build_destination(elsewhere)
        destination.startup(store)
        store.request_copy(items)
        with pytest.raises(CopyMissing, match=r"test.duckdb does not have the complete copy"):
            TableSync(elsewhere, store, destination, items).run()
        destination.shutdown()

        own = build_destination(config)
        own.startup(store)
        store.request_copy(items)
        TableSync(config, store, own, items).run()
        own.shutdown()
    catch_up(config)
    assert isinstance(store.get_table_replication_state(items), Ready)
    assert_table_in_step(database, config, "items")
