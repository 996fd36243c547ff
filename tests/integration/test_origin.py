"""A source that is another one, or was restored to an earlier point, is refused until a repair."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etl_dagster.assembly import build_store
from etl_dagster.cli.checks import all_checks
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.ports import free_port
from etl_dagster.demo.server import EmbeddedPostgres, ServerBinaries, find_servers
from etl_dagster.destinations.postgres import PostgresDestination
from etl_dagster.errors import (
    DestinationError,
    EtlError,
    SourceNotPrepared,
    SourceReplaced,
    SourceRestored,
    StandbyBehind,
    StoreRestored,
)
from etl_dagster.runtime.pipeline import Pipeline
from etl_dagster.runtime.table_ids import find_table_ids
from tests.support.commands import call, write_etl_yaml
from tests.support.database import Database, make_config
from tests.support.pipelines import assert_table_in_step, running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.servers("newest")]

MakeConfig = Callable[..., PipelineConfig]

TABLES = (
    "create table items (id int primary key, n int not null)",
    "insert into items select i, 0 from generate_series(1, 100) i",
    "create publication etl_pub for table items",
)


#: What a restore undoes.
CHANGES = (
    "insert into items values (1001, 1)",
    "update items set n = 7 where id = 3",
    "delete from items where id = 4",
)


class Cluster:
    """A server of its own, whose data can be put aside and brought back."""

    def __init__(self, server: EmbeddedPostgres, database: Database) -> None:
        self.server = server
        self.database = database
        self.execute = database.execute
        self.query = database.query

    def insert(self, key: int) -> None:
        self.execute(f"insert into items values ({key}, {key})")

    def save(self, name: str) -> None:
        """As a snapshot of the file system."""
        self.server.stop()
        subprocess.run(["cp", "-a", self.server.data_dir, self.server.folder / name], check=True)
        self.server.start()

    def restore(self, name: str) -> None:
        self.server.stop()
        shutil.rmtree(self.server.data_dir)
        subprocess.run(["cp", "-a", self.server.folder / name, self.server.data_dir], check=True)
        self.server.start()

    def promote(self) -> None:
        """Begin a new timeline here, as a failover does, or a recovery to a point in time."""
        self.become_standby()
        self.query("select pg_promote(true, 60)")

    def become_standby(self) -> None:
        self.server.stop()
        signal = self.server.data_dir / "standby.signal"
        signal.touch()
        owner = self.server.data_dir.stat()
        shutil.chown(signal, owner.st_uid, owner.st_gid)
        self.server.start()

    def outrun(self, lsn: str) -> None:
        """Go past an LSN, and past the transactions before it, with changes of its own."""
        with self.database.connect() as connection:
            connection.execute("create table if not exists filler (t text)")
            for _ in range(50):
                connection.execute("insert into filler values (repeat('x', 1000))")
            while connection.execute(
                "select pg_current_wal_lsn() <= %s::pg_lsn", [lsn]
            ).fetchone() == (True,):
                connection.execute("insert into filler values (repeat('x', 5000))")


SERVERS = find_servers()
#: For what our own records reveal, in any version: the source is only asked where its WAL ends.
ONE_VERSION = pytest.mark.parametrize(
    "own_server", SERVERS[:1], ids=[f"pg{found.major}" for found in SERVERS[:1]], indirect=True
)


@pytest.fixture(scope="module", params=SERVERS, ids=lambda found: f"pg{found.major}")
def own_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedPostgres]:
    binaries: ServerBinaries = request.param
    folder = tmp_path_factory.mktemp("origin")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    with EmbeddedPostgres(
        folder / "pg", binaries, port=free_port(), settings={"wal_level": "logical"}, durable=False
    ) as server:
        yield server


@pytest.fixture
def cluster(own_server: EmbeddedPostgres) -> Iterator[Cluster]:
    with Database.create(own_server) as database:
        database.execute(*TABLES)
        yield Cluster(own_server, database)


def catch_up(config: PipelineConfig) -> None:
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)


def assert_refused(config: PipelineConfig, kind: type[EtlError], match: str) -> None:
    with pytest.raises(kind, match=match) as refused:
        catch_up(config)
    assert "etl-dagster reset --all" in refused.value.solution
    assert "etl-dagster repair --all" in refused.value.solution


def assert_repaired(cluster: Cluster, config: PipelineConfig, file: Path) -> None:
    """Offline, `repair --all` has the next start make both equal, row by row, and stay so."""
    assert "The slot will be dropped" in call("repair", file, "--all", "--yes")
    with closing(build_store(config)) as store:  # type: ignore[type-var]
        with running(config, store=store) as pipeline:
            assert pipeline.wait_until_caught_up(60)
            cluster.execute("insert into items values (3001, 1)", "delete from items where id = 1")
            assert pipeline.wait_until_caught_up(60)
        [table_id] = find_table_ids(config, store).values()
        outcome = store.get_note(f"repaired {table_id}")
    assert outcome is not None
    # Rows 4, 1001 and 3 of `CHANGES`; others are the test's own.
    assert (outcome["by"], outcome["extra"], outcome["changed"]) == ("ranges", 1, 1)
    assert outcome["missing"] >= 1
    catch_up(config)
    assert_table_in_step(cluster.database, config, "items")


def assert_doctor_finds(config: PipelineConfig, kind: type[EtlError]) -> None:
    assert any(isinstance(check.failure, kind) for check in all_checks(config))


def test_a_source_that_was_restored_is_refused_with_the_store_elsewhere(
    cluster: Cluster, newest_database: Database, tmp_path: Path
) -> None:
    config = make_config(
        cluster.database,
        tmp_path,
        state_store={"type": "postgres", "dsn": newest_database.dsn},
    )
    catch_up(config)
    cluster.save("before")
    cluster.insert(1001)
    catch_up(config)

    # A failover to a server that has everything, its slot included.
    cluster.promote()
    cluster.insert(1002)
    catch_up(config)
    assert_table_in_step(cluster.database, config, "items")
    newest = cluster.database.current_lsn()

    # A snapshot of the file system, the timeline is the older one; the data is behind.
    cluster.restore("before")
    assert_refused(config, SourceRestored, "timeline 1, which doesn't descend from timeline 2")
    assert_doctor_finds(config, SourceRestored)

    # Recovered to that point, as a new timeline of the same number.
    cluster.promote()
    assert_refused(config, SourceRestored, "WAL ends at")
    cluster.insert(2001)
    cluster.outrun(newest)
    # Now only the transaction itself reveals it.
    assert_refused(config, SourceRestored, "but the source now sends")

    newest_database.execute("update etl.known_sources set timeline = 1")
    assert_refused(config, SourceRestored, "timeline 2, which left timeline 1 at")


def test_a_standby_is_refused(cluster: Cluster, newest_database: Database, tmp_path: Path) -> None:
    """Also a primary that became a standby behind the pipeline's back, and as a destination."""
    config = make_config(
        cluster.database,
        tmp_path,
        state_store={"type": "postgres", "dsn": newest_database.dsn},
    )
    catch_up(config)
    cluster.become_standby()
    with pytest.raises(SourceNotPrepared, match="is a standby") as refused:
        catch_up(config)
    assert "source.standby: true" in refused.value.solution
    assert_doctor_finds(config, SourceNotPrepared)
    # Nor where it may be one: an older version can't decode, and this one has no primary.
    source = config.source.model_copy(update={"standby": True})
    assert_doctor_finds(
        config.model_copy(update={"source": source}),
        SourceNotPrepared if cluster.server.binaries.major < 16 else StandbyBehind,
    )
    destination = PostgresDestination(cluster.database.dsn)
    with pytest.raises(DestinationError, match="is a standby, which takes no writes"):
        destination.check()
    destination.shutdown()

    cluster.query("select pg_promote(true, 60)")
    cluster.insert(1001)
    catch_up(config)
    assert_table_in_step(cluster.database, config, "items")


@ONE_VERSION
def test_a_snapshot_of_the_same_timeline_is_refused_until_it_is_repaired(
    cluster: Cluster, newest_database: Database, tmp_path: Path
) -> None:
    config = make_config(
        cluster.database,
        tmp_path,
        state_store={"type": "postgres", "dsn": newest_database.dsn},
        retry={"max_attempts": 100},
    )
    catch_up(config)
    cluster.save("same")

    def restore_meanwhile(pipeline: Pipeline) -> None:
        cluster.execute(*CHANGES)
        assert pipeline.wait_until_caught_up(60)
        cluster.restore("same")
        with pytest.raises(SourceRestored, match="WAL ends at"):
            pipeline.wait(60)

    with pytest.raises(SourceRestored), running(config) as pipeline:
        restore_meanwhile(pipeline)

    # Positions of the destination are ahead of the source's.
    store = {"dsn": newest_database.dsn}
    assert_repaired(
        cluster, config, write_etl_yaml(cluster.database, config, tmp_path, state_store=store)
    )


@ONE_VERSION
def test_a_store_that_was_restored_with_its_source_is_refused(
    cluster: Cluster, tmp_path: Path
) -> None:
    """By default the store is in the source, and goes back with it: the destination is ahead."""
    config = make_config(cluster.database, tmp_path)
    catch_up(config)
    cluster.save("with_store")
    cluster.execute(*CHANGES)
    catch_up(config)
    newest = cluster.database.current_lsn()
    cluster.restore("with_store")
    cluster.insert(2001)
    cluster.outrun(newest)

    assert_refused(config, StoreRestored, "has no record of")
    assert_repaired(cluster, config, write_etl_yaml(cluster.database, config, tmp_path))


@ONE_VERSION
def test_the_last_batch_alone_reveals_that_source_and_store_were_restored(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The pipeline kept running, so the epoch is the same; the destination has one batch more."""
    config = make_config(cluster.database, tmp_path)
    catch_up(config)
    with running(config) as pipeline:
        cluster.insert(1001)
        assert pipeline.wait_until_caught_up(60)
    cluster.save("one_batch")
    epoch = cluster.query("select epoch from etl.pipelines")[0][0]
    # The same epoch continues, as if the pipeline had not been stopped for the snapshot.
    destination = _destination_ahead(config, cluster, epoch)
    newest = cluster.database.current_lsn()
    cluster.restore("one_batch")
    cluster.insert(2001)
    cluster.outrun(newest)
    assert destination
    assert_refused(config, SourceRestored, "but the source now sends")


def _destination_ahead(config: PipelineConfig, cluster: Cluster, epoch: int) -> bool:
    import duckdb

    cluster.insert(1002)
    catch_up(config)
    with duckdb.connect(str(config.destination.path)) as connection:  # type: ignore[attr-defined]
        connection.execute("update _etl.pipelines set epoch = ?, stored_lsn = 0", [epoch])
    return True


def test_another_database_and_another_cluster_are_refused(
    cluster: Cluster, newest_database: Database, tmp_path: Path
) -> None:
    store = {"type": "postgres", "dsn": newest_database.dsn}
    config = make_config(cluster.database, tmp_path, state_store=store)
    catch_up(config)

    newest_database.execute(*TABLES)
    other = make_config(newest_database, tmp_path, state_store=store)
    assert_refused(other, SourceReplaced, "another cluster: its system identifier")
    assert_doctor_finds(other, SourceReplaced)
    assert newest_database.slots() == []

    with Database.create(cluster.server) as restored:
        restored.execute(*TABLES)
        same_name = make_config(restored, tmp_path, state_store=store)
        assert_refused(same_name, SourceReplaced, "another database")

    # The way back: everything from the new source, whose positions are smaller perhaps.
    from etl_dagster.assembly import opened_store

    with opened_store(other) as opened:
        opened.reset_for_resync()
    catch_up(other)
    newest_database.execute("insert into items values (3001, 0)")
    catch_up(other)
    assert_table_in_step(newest_database, other, "items")
