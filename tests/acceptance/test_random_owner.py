"""Tables, columns and publications change at random, stopped and running; rows stay the source's.

The destination refuses batches of more than a few changes, so that they are halved, and fails now
and then, before or after a batch is durable.

More seeds: ``ETL_TEST_SEEDS="1 2 3" pytest tests/acceptance/test_random_owner.py -s``. A failure
prints every statement that led to it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from etl_dagster.assembly import build_destination, build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import BatchTooLarge
from etl_dagster.model.states import Errored, ManualRetry, Ready
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.timing import Timing
from etl_dagster.source.trigger import install
from etl_dagster.testing import FaultyDestination
from etl_dagster.testing.faulty import Call, Fault, Plan, Refuse, at_random
from tests.support.database import Database
from tests.support.pipelines import reading, running
from tests.support.random_owner import KINDS, Owner, Table, source_rows
from tests.support.waiting import PATIENCE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PHASES = 4
QUICK = Timing(membership_s=0.5)


def _moods(rng: random.Random) -> Plan:
    """A destination takes few changes at a time, and fails now and then."""
    most = rng.choice([1, 2, 5, 1000])
    failures = at_random(rng.randrange(2**32), refuse=0.03, lose_answer=0.03, delay=0)

    def plan(call: Call) -> Fault | None:
        if call.row_count > most:
            return Refuse(BatchTooLarge(f"more than {most} changes"))
        return failures(call)

    return plan


def test_random_actions_of_an_owner_leave_every_table_in_step(
    newest_database: Database,
    make_config: Callable[..., PipelineConfig],
    kind: str,
    is_reported: bool,
    seed: int,
) -> None:
    rng, moods = random.Random(seed), random.Random(seed)
    config = make_config(newest_database, **{"retry.initial_delay_ms": 5})
    with (
        closing(Owner(newest_database.dsn, rng, kind)) as owner,
        closing(build_store(config)) as store,  # type: ignore[type-var]
    ):
        owner.create()
        if is_reported:
            with newest_database.connect() as connection:
                install(connection)
        try:
            for phase in range(PHASES):
                owner.log.append(f"-- phase {phase}: {'running' if phase % 2 else 'stopped'}")
                if phase % 2 == 0:
                    _change(owner, rng)
                destination = FaultyDestination(build_destination(config), _moods(moods))
                with running(config, destination=destination, timing=QUICK) as pipeline:
                    assert pipeline.wait_until_caught_up(PATIENCE_S)
                    if phase % 2:
                        _change(owner, rng)
                    owner.touch()
                    assert pipeline.wait_until_caught_up(PATIENCE_S)
                    _assert_in_step(newest_database, owner, config, store)
        except BaseException:
            print(f"{kind}, {'reported' if is_reported else 'not reported'}, seed {seed}:")
            print("\n".join(owner.log))
            raise


def _change(owner: Owner, rng: random.Random) -> None:
    for _ in range(rng.randrange(2, 8)):
        match rng.randrange(10):
            case 0:
                owner.leave_and_return()
            case 1:
                owner.rewrite()
            case _:
                owner.step()


def _assert_in_step(
    database: Database, owner: Owner, config: PipelineConfig, store: CoordinatingStore
) -> None:
    """Wait until every published table is the source's; one that stopped is copied again."""
    deadline = time.monotonic() + PATIENCE_S
    resets: set[int] = set()
    while True:
        with reading(config) as ask:
            wrong = [t for t in owner.published() if _here(ask, t) != source_rows(database, t)]
        states = store.get_table_replication_states()
        unready = [t for t in owner.published() if not isinstance(states.get(t.oid), Ready)]
        if not wrong and not unready:
            return
        for table in unready:
            state = states.get(table.oid)
            if isinstance(state, Errored) and isinstance(state.retry, ManualRetry):
                owner.log.append(f"-- {table.name} stopped: {state.reason}")
                assert table.oid not in resets, f"{table.name} stopped twice: {state.reason}"
                resets.add(table.oid)
                store.request_copy(table.oid)
        if time.monotonic() > deadline:
            with reading(config) as ask:
                raise AssertionError(
                    "\n".join(
                        f"{t.name} is {states.get(t.oid)}\n  source {source_rows(database, t)}\n"
                        f"  here   {_here(ask, t)}"
                        for t in {t.oid: t for t in (*wrong, *unready)}.values()
                    )
                )
        time.sleep(0.2)


def _here(ask: Callable[[str], list[tuple[Any, ...]]], table: Table) -> Any:
    """The destination's rows as text, sorted; or its columns, where they are others."""
    columns = [
        name
        for (name,) in ask(
            "select column_name from duckdb_columns() where"
            f" schema_name = '{table.schema}' and table_name = '{table.name}'",
        )
    ]
    if sorted(columns) != sorted(table.columns):
        return columns
    selected = ", ".join(f'cast("{name}" as varchar)' for name in sorted(columns))
    return sorted(ask(f"select {selected} from {table.sql}"), key=repr)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    import os

    seeds = [int(seed) for seed in os.environ.get("ETL_TEST_SEEDS", "1").split()]
    metafunc.parametrize("seed", seeds)
    metafunc.parametrize("is_reported", [False, True], ids=["found", "reported"])
    metafunc.parametrize("kind", KINDS)
