"""Streams: the same changes through pg_recvlogical and through a whole pipeline.

Each pipeline makes its copy first, is stopped, the changes are committed, and it is started again:
measured is that second run. Every contender reads every change once, from a slot of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb

from benchmarks.harness import PUBLICATION, BenchmarkFailed, Contest, Harness, Measurement

_BASE_SLOT = "base"

ORDERS = """
    create table orders (
      id bigint primary key,
      quantity integer not null,
      price numeric(12, 2) not null,
      description text,
      ordered_at timestamptz not null,
      is_paid boolean not null)
"""
ORDER_ROWS = """
    insert into orders
    select i, (i * 7) % 1000, ((i * 13) % 100000)::numeric / 100, 'order number ' || i,
           timestamptz '2024-01-01 00:00:00+00' + i * interval '1.5 seconds', i % 3 = 0
    from generate_series({first}, {last}) i
"""
_WIDE_TYPES = ("int", "bigint", "numeric(12, 2)", "text", "timestamptz", "boolean")


@dataclass(frozen=True)
class Case:
    """Changes to stream, and how to see that they arrived."""

    name: str
    title: str
    #: Statements that make the tables and their first rows.
    setup: tuple[str, ...]
    #: Commits the changes.
    change: Callable[[Harness, str], None]
    #: How many there are.
    change_count: int
    #: A query that source and destination must answer alike.
    check: str
    #: Run next to the one that writes into DuckDB: name of a contender to its destination.
    contenders: tuple[tuple[str, str], ...] = ()
    rounds: int | None = None
    memory_limit: str = "256MB"


def contest(harness: Harness, case: Case) -> Contest:
    """Measure the case; the baseline is called ``pg_recvlogical``."""
    result = Contest(case.title)
    rounds = harness.rounds if case.rounds is None else case.rounds
    runs = [
        (name, destination, f"{case.name}_{place}_{number}")
        for number in range(rounds)
        for place, (name, destination) in enumerate(case.contenders)
    ]
    with _prepared(harness, case) as database:
        for _, destination, pipeline in runs:
            harness.run_worker(_task(harness, case, pipeline, destination))
        case.change(harness, database)
        end_lsn = harness.insert_lsn(database)
        with harness.connect(database) as connection:
            connection.execute("checkpoint")
        for number, (name, destination, pipeline) in enumerate(runs):
            if number % len(case.contenders) == 0:
                baseline = harness.recvlogical(database, _BASE_SLOT, end_lsn, case.change_count)
                result.measured.setdefault("pg_recvlogical", []).append(baseline)
            task = _task(harness, case, pipeline, destination) | {"end_lsn": end_lsn}
            measured = Measurement(**harness.run_worker(task))
            result.measured.setdefault(name, []).append(measured)
            if destination == "duckdb":
                _require_same(harness, case, pipeline)
            with harness.connect(database) as connection:
                # It keeps WAL, and a heap of catalog rows, unneeded.
                connection.execute(
                    "select pg_drop_replication_slot(slot_name) from pg_replication_slots"
                    " where slot_name like %s",
                    [f"%{pipeline}%"],
                )
    return result


@contextmanager
def _prepared(harness: Harness, case: Case) -> Iterator[str]:
    tables = f"create publication {PUBLICATION} for tables in schema public"
    with harness.database(case.name, *case.setup, tables) as database:
        with harness.connect(database) as connection:
            connection.execute("vacuum analyze")
            connection.execute(
                "select pg_create_logical_replication_slot(%s, 'pgoutput')", [_BASE_SLOT]
            )
        yield database


def _task(harness: Harness, case: Case, pipeline: str, destination: str) -> dict[str, object]:
    config = harness.config(case.name, pipeline)
    config["destination"]["memory_limit"] = case.memory_limit
    return {"kind": "catch_up", "config": config, "destination": destination}


def _require_same(harness: Harness, case: Case, pipeline: str) -> None:
    expected = [str(value) for value in harness.ask(case.name, case.check)]
    with duckdb.connect(str(harness.file(case.name, pipeline)), read_only=True) as connection:
        row = connection.execute(case.check.replace(" from ", " from public.")).fetchone()
    found = [str(value) for value in row or ()]
    if found != expected:
        raise BenchmarkFailed(f"the source has {expected}, the destination {found}")


# -- the cases ---------------------------------------------------------------------------------


def small_inserts(harness: Harness) -> Case:
    """Rows of six typed columns, a thousand in each transaction."""
    rows = harness.scaled(1_000_000)
    return Case(
        name="small",
        title=f"{rows:,} rows of six columns inserted",
        setup=(ORDERS,),
        change=_in_steps(ORDER_ROWS, rows, 1000),
        change_count=rows,
        check="select count(*), sum(quantity), sum(price) from orders",
        contenders=(("stream_to_arrow", "discard"), ("stream_to_duckdb", "duckdb")),
    )


def one_transaction(harness: Harness, rows: int, name: str) -> Case:
    """The same rows in one transaction."""
    rows = harness.scaled(rows)
    return Case(
        name=name,
        title=f"{rows:,} rows in one transaction",
        setup=(ORDERS,),
        change=_in_steps(ORDER_ROWS, rows, rows),
        change_count=rows,
        check="select count(*), sum(quantity), sum(price) from orders",
        contenders=((f"{name}_to_duckdb", "duckdb"),),
        rounds=1,
    )


def tpcb(harness: Harness) -> Case:
    """pgbench's own workload: three updates and an insert in each transaction."""
    clients = 4
    transactions = harness.scaled(100_000) // clients

    def run(harness: Harness, database: str) -> None:
        harness.run_tool(
            0,
            "pgbench", "--no-vacuum", "--client", str(clients), "--jobs", "1",
            "--transactions", str(transactions), "--dbname", harness.server.dsn(database),
        )  # fmt: skip

    scale = harness.scaled(10)
    return Case(
        name="tpcb",
        title=f"pgbench, {transactions * clients:,} transactions of four changes",
        setup=(
            "create table pgbench_branches (bid int primary key, bbalance int, filler char(88))",
            "create table pgbench_tellers"
            " (tid int primary key, bid int, tbalance int, filler char(84))",
            "create table pgbench_accounts"
            " (aid int primary key, bid int, abalance int, filler char(84))",
            "create table pgbench_history"
            " (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22))",
            "alter table pgbench_history replica identity full",
            f"insert into pgbench_branches select i, 0, '' from generate_series(1, {scale}) i",
            "insert into pgbench_tellers select i, (i - 1) / 10 + 1, 0, ''"
            f" from generate_series(1, {scale * 10}) i",
            "insert into pgbench_accounts select i, (i - 1) / 100000 + 1, 0, ''"
            f" from generate_series(1, {scale * 100_000}) i",
        ),
        change=run,
        change_count=transactions * clients * 4,
        check="select count(*), sum(abalance) from pgbench_accounts",
        contenders=(("tpcb_to_duckdb", "duckdb"),),
    )


def toast_updates(harness: Harness) -> Case:
    """Updates next to a value of 3 kB that stays as it is, so that Postgres doesn't send it."""
    rows = harness.scaled(300_000)
    return Case(
        name="toast",
        title=f"{rows:,} updates with an unchanged text of 3 kB",
        setup=(
            "create table docs (id bigint primary key, n int not null, doc text not null)",
            "alter table docs alter doc set storage external",
            "insert into docs select i, 0, repeat(md5(i::text), 94)"
            f" from generate_series(1, {rows}) i",
        ),
        change=_in_steps("update docs set n = n + 1 where id between {first} and {last}", rows),
        change_count=rows,
        check="select count(*), sum(n), sum(length(doc)) from docs",
        contenders=(("toast_updates_to_duckdb", "duckdb"),),
        rounds=min(harness.rounds, 2),
    )


def deletes(harness: Harness) -> Case:
    """Every row of a table deleted, ten thousand in each transaction."""
    rows = harness.scaled(1_000_000)
    return Case(
        name="deletes",
        title=f"{rows:,} deletes",
        setup=(ORDERS, ORDER_ROWS.format(first=1, last=rows)),
        change=_in_steps("delete from orders where id between {first} and {last}", rows),
        change_count=rows,
        check="select count(*) from orders",
        contenders=(("deletes_to_duckdb", "duckdb"),),
    )


def wide_rows(harness: Harness) -> Case:
    """Inserts into 60 columns of six types."""
    rows = harness.scaled(200_000)
    columns = [f"c{place} {_WIDE_TYPES[place % 6]}" for place in range(59)]
    values = {
        "int": "(i * {n}) % 1000",
        "bigint": "i * {n}",
        "numeric(12, 2)": "((i * {n}) % 100000)::numeric / 100",
        "text": "'text ' || {n} || ' of ' || i",
        "timestamptz": "timestamptz '2024-01-01 00:00+00' + i * interval '{n} seconds'",
        "boolean": "i % {n} = 0",
    }
    selected = ", ".join(values[_WIDE_TYPES[place % 6]].format(n=place + 2) for place in range(59))
    return Case(
        name="wide",
        title=f"{rows:,} rows of sixty columns inserted",
        setup=(f"create table wide (id bigint primary key, {', '.join(columns)})",),
        change=_in_steps(
            f"insert into wide select i, {selected} from generate_series({{first}}, {{last}}) i",
            rows,
            1000,
        ),
        change_count=rows,
        check="select count(*), sum(c0), sum(c2), sum(length(c3)) from wide",
        contenders=(("wide_to_duckdb", "duckdb"),),
        rounds=min(harness.rounds, 2),
    )


def arrays(harness: Harness) -> Case:
    """Arrays of five numbers, a thousand rows in each transaction."""
    rows = harness.scaled(1_000_000)
    return Case(
        name="arrays",
        title=f"{rows:,} arrays of five integers inserted",
        setup=("create table arrays (id bigint primary key, numbers int[] not null)",),
        change=_in_steps(
            "insert into arrays select i, array[i, i * 7 % 1000, -i, i % 10, i / 3]"
            " from generate_series({first}, {last}) i",
            rows,
            1000,
        ),
        change_count=rows,
        check="select count(*), sum(numbers[1]), sum(numbers[5]) from arrays",
        contenders=(("arrays_to_arrow", "discard"), ("arrays_to_duckdb", "duckdb")),
    )


def long_texts(harness: Harness) -> Case:
    """Texts of 2 kB that don't compress, all in one transaction."""
    rows = harness.scaled(1_000_000)
    return Case(
        name="texts",
        title=f"{rows:,} texts of 2 kB in one transaction",
        setup=(
            "create table texts (id bigint primary key, body text not null)",
            # Neither compressed nor moved out of line: what is measured is the stream.
            "alter table texts alter body set storage plain",
            """
            create procedure fill(rows int) language plpgsql as $$
            declare pool text := (select string_agg(md5(i::text), '')
                                  from generate_series(1, 250) i);
            begin
              insert into texts select i, substr(pool, (i * 37) % 6000 + 1, 1990) || i
              from generate_series(1, rows) i;
            end $$
            """,
        ),
        change=_in_steps(f"call fill({rows})", 1),
        change_count=rows,
        check="select count(*), sum(length(body)) from texts",
        contenders=(("texts_to_duckdb", "duckdb"),),
        rounds=1,
    )


def _in_steps(statement: str, rows: int, step: int = 10_000) -> Callable[[Harness, str], None]:
    """Commit a statement over ``{first}`` to ``{last}``, some rows in each transaction."""

    def change(harness: Harness, database: str) -> None:
        with harness.connect(database) as connection:
            for first in range(1, rows + 1, step):
                last = min(first + step - 1, rows)
                connection.execute(statement.format(first=first, last=last))

    return change


# -- a copy ------------------------------------------------------------------------------------


def copies(harness: Harness) -> Contest:
    """A table that is there, over one connection; the baseline is psql."""
    rows = harness.scaled(1_000_000)
    result = Contest(f"{rows:,} rows of six columns copied")
    fill = ORDER_ROWS.format(first=1, last=rows)
    publication = f"create publication {PUBLICATION} for table orders"
    with harness.database("copies", ORDERS, fill, publication) as database:
        with harness.connect(database) as connection:
            connection.execute("vacuum analyze")
        for number in range(harness.rounds):
            baseline = harness.psql_copy(database, "orders", rows)
            config = harness.config(
                database, f"copy_{number}", copy={"max_connections_per_table": 1}
            )
            measured = Measurement(**harness.run_worker({"kind": "copy", "config": config}))
            result.measured.setdefault("psql_copy", []).append(baseline)
            result.measured.setdefault("copy_to_duckdb", []).append(measured)
    return result
