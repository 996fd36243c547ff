"""What chaos is done to: servers, tables that change, a pipeline in processes, its destinations."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import psycopg
from psycopg.conninfo import make_conninfo

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.source.trigger import install
from tests.support.database import PUBLICATION, Database
from tests.support.killed_workers import Workers, task_of
from tests.support.proxy import Proxy
from tests.support.quick_login import hash_password_once
from tests.support.random_owner import KINDS, Owner
from tests.support.random_shop import TABLES, Workload, create_tables, workload

Kind: TypeAlias = Literal["duckdb", "postgres", "fan-out"]
DESTINATIONS: tuple[Kind, ...] = ("duckdb", "postgres", "fan-out")

#: Without fsync, but what is committed stays so: it is the server that is killed, not the machine.
_SETTINGS: Mapping[str, str | int] = {
    "max_replication_slots": 100,
    "max_wal_senders": 100,
    "max_connections": 200,
    "max_prepared_transactions": 10,
    "shared_buffers": "32MB",
    "fsync": "off",
    "full_page_writes": "off",
}


@dataclass(frozen=True)
class World:
    """Everything that can be broken, and what it takes to see whether it was."""

    source: Database
    #: With the store and the destination that is a Postgres.
    other_server: EmbeddedPostgres
    #: By what is behind them.
    proxies: Mapping[str, Proxy]
    #: The DuckDB file of the destination that is one.
    file: Path | None
    #: What each destination is, with a way to it that nothing stands in.
    members: Mapping[str, PipelineConfig]
    stores: Mapping[str, CoordinatingStore]
    workers: Workers
    changes: Workload
    owner: Owner

    @property
    def servers(self) -> Mapping[str, EmbeddedPostgres]:
        return {"source": self.source.server, "store": self.other_server}

    @classmethod
    def build(cls, stack: ExitStack, seed: int, kind: Kind, folder: Path, rows: int) -> Self:
        """All of it, running; the stack ends it."""
        rng = random.Random(seed)
        folder.chmod(0o755)  # for the account of the servers
        servers = [
            stack.enter_context(
                EmbeddedPostgres(folder / name, find_servers()[0], settings=_SETTINGS)
            )
            for name in ("source", "other")
        ]
        for server in servers:
            hash_password_once(server)
        source, store, replica = (
            stack.enter_context(Database.create(servers[place])) for place in (0, 1, 1)
        )
        owner = _create_tables(source, rng, rows)
        stack.callback(owner.close)
        proxies = {"source": Proxy(source.dsn), "store": Proxy(store.dsn)}
        if kind != "duckdb":
            proxies["destination"] = Proxy(replica.dsn)
        for proxy in proxies.values():
            stack.enter_context(proxy)
        file = None if kind == "postgres" else folder / "tables.duckdb"

        def config(way: Callable[[str, Database], str]) -> dict[str, Any]:
            """With the way to each database."""
            made = task_of(way("source", source), {})["config"]
            made["state_store"] = {"dsn": way("store", store)}
            made["destinations"] = _destinations(kind, file, way("destination", replica))
            if kind == "fan-out":
                made["fan_out"] = {"buffer": "2MB", "max_wal_behind": "4MB"}
                del made["destination"]
            else:
                [made["destination"]] = made.pop("destinations").values()
            return dict(made)

        direct = parse_config(config(lambda _, database: database.dsn), {})
        members = direct.members() if kind == "fan-out" else {kind: direct}
        stores = {}
        for name, member in members.items():
            stores[name] = build_store(member)
            stack.callback(stores[name].close)  # type: ignore[attr-defined]
        task = {
            "config": config(
                lambda name, database: proxies[name].dsn if name in proxies else database.dsn
            ),
            "is_quick": True,
        }
        changes = stack.enter_context(
            workload(source.dsn, rng.randrange(2**32), rows, pause_s=0.2, reconnects=True)
        )
        is_one = kind == "fan-out" or rng.random() < 0.5
        workers = stack.enter_context(
            Workers(
                task,
                [*stores.values()],
                folder,
                copies="own" if is_one else "elsewhere",
                check=lambda state: None,
            )
        )
        return cls(source, servers[1], proxies, file, members, stores, workers, changes, owner)


def _create_tables(source: Database, rng: random.Random, rows: int) -> Owner:
    """A shop whose rows change, and next to it tables whose owner changes them, in one publication.

    Now and then, the source reports what is done to tables.
    """
    create_tables(source.dsn, rows)
    source.execute(f"drop publication {PUBLICATION}")
    kind = rng.choice(KINDS)
    # What it waits for may be what is stalled just now.
    dsn = make_conninfo(source.dsn, options="-c lock_timeout=1s")
    owner = Owner(dsn, rng, kind)
    owner.create()
    if kind == "for tables in schema":
        source.execute(f"alter publication {PUBLICATION} add tables in schema public")
    elif kind == "for table":
        source.execute(f"alter publication {PUBLICATION} add table {', '.join(TABLES)}")
    if rng.random() < 0.5:
        with psycopg.connect(source.dsn, autocommit=True) as connection:
            install(connection)
    return owner


def _destinations(kind: Kind, file: Path | None, replica: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    if file is not None:
        found["file"] = {"type": "duckdb", "path": str(file), "changelog": True}
    if kind != "duckdb":
        found["replica"] = {"type": "postgres", "dsn": replica, "changelog": True}
    return found
