"""Money prints by a setting of server, database and role; the pipeline's sessions pin it."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from etl_dagster.assembly import build_store
from etl_dagster.config import PipelineConfig
from etl_dagster.demo.server import EmbeddedPostgres, find_servers
from etl_dagster.runtime.checking.check import Check
from etl_dagster.runtime.checking.preflight import run_checks
from tests.support.database import PUBLICATION, Database
from tests.support.pipelines import rows, running

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def german(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database whose money is in euros, on a server that knows yen, too."""
    localedef, servers = shutil.which("localedef"), find_servers()
    if localedef is None or not servers:
        pytest.skip("no localedef, or no PostgreSQL here")
    locales = tmp_path / "locales"
    locales.mkdir()
    for name in ("de_DE", "ja_JP"):
        made = [localedef, "-i", name, "-f", "UTF-8", str(locales / f"{name}.UTF-8")]
        if subprocess.run(made, capture_output=True, check=False).returncode:
            pytest.skip(f"this machine can't make the locale {name}")
    tmp_path.chmod(0o755)
    for each in locales.rglob("*"):
        each.chmod(0o755)
    monkeypatch.setenv("LOCPATH", str(locales))
    server = EmbeddedPostgres(
        tmp_path / "server", servers[0], settings={"max_wal_senders": 20}, durable=False
    )
    server.start()
    try:
        with Database.create(server) as database:
            database.execute(
                "create table prices (id int primary key, price money, n int)",
                "create table bids (price money, n int)",
                "alter table bids replica identity full",
                "insert into prices values (1, 1234.5, 1), (2, -1, 1)",
                "insert into bids values (1234.5, 1), (-1, 1)",
                f"create publication {PUBLICATION} for all tables",
                f"alter database {database.name} set lc_monetary = 'de_DE.UTF-8'",
            )
            yield database
    finally:
        server.stop()


def _change(database: Database, n: int) -> None:
    for table in ("prices", "bids"):
        database.execute(
            f"update {table} set n = {n} where price = 1234.5::money",
            f"update {table} set price = price - 1::money where price < 0::money",
        )


def _shown(config: PipelineConfig) -> list[tuple[object, ...]]:
    tables = [
        rows(config, f"select price, n from public.{table} order by price")
        for table in ("prices", "bids")
    ]
    assert tables[0] == tables[1]
    return tables[0]


def _check(config: PipelineConfig) -> Check | None:
    return next((check for check in run_checks(config) if check.name == "money"), None)


def test_money_prints_alike_in_every_session(
    german: Database, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    config = make_config(german)
    check = _check(config)
    assert check is not None
    assert check.level == "warning"
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        _change(german, 2)
        # Sessions that are open follow a server that reads its configuration again.
        german.execute("alter system set lc_monetary = 'de_DE.UTF-8'", "select pg_reload_conf()")
        assert pipeline.wait_until_caught_up(60)
        assert _shown(config) == [("$1,234.50", 2), ("-$2.00", 1)]
    assert "copied again" not in caplog.text

    # As an earlier version left it, which did not pin the setting.
    with closing(build_store(config)) as store:
        status = store.get_note("alterations")
        assert status is not None
        store.put_note("alterations", {k: v for k, v in status.items() if k != "money"})
    with running(config) as pipeline:
        assert pipeline.wait_until_caught_up(60)
    assert caplog.text.count("is copied again: money prints otherwise") == 2

    caplog.clear()
    options = "-c lc_monetary=de_DE.UTF-8"
    chosen = make_config(
        german, source={"dsn": make_conninfo(german.dsn, options=options), "publication": "etl_pub"}
    )
    assert _check(chosen) is None
    with running(chosen) as pipeline:
        assert pipeline.wait_until_caught_up(60)
        _change(german, 3)
        assert pipeline.wait_until_caught_up(60)
    assert caplog.text.count("is copied again: money prints otherwise") == 2
    assert _shown(chosen) == [("-3,00 €", 1), ("1.234,50 €", 3)]


def test_a_currency_with_other_decimal_places_is_refused_until_it_is_configured(
    german: Database, make_config: MakeConfig
) -> None:
    german.execute(f"alter database {german.name} set lc_monetary = 'ja_JP.UTF-8'")
    check = _check(make_config(german))

    assert check is not None
    assert check.level == "error"
    assert "public.bids.price, public.prices.price" in check.message
