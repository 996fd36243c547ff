"""The project in `examples/dagster_project`, with everything real but the clock and the webhook."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import duckdb
import pytest
from dagster import (
    AssetKey,
    DagsterInstance,
    Definitions,
    ExecuteInProcessResult,
    build_run_status_sensor_context,
    load_from_defs_folder,
)

import etl_dagster
from etl_dagster.errors import ConfigError
from tests.support.dagster_in_process import searched_instance
from tests.support.database import Database
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "dagster_project"
_PACKAGE = "shop_platform"


@pytest.fixture
def project(
    newest_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A copy of the folder, with the two variables that its README exports."""
    folder = shutil.copytree(EXAMPLE, tmp_path / "project")
    newest_database.execute((folder / "shop.sql").read_text())
    monkeypatch.setenv("SHOP_DSN", newest_database.dsn)
    monkeypatch.setenv("SUPPORT_DSN", newest_database.dsn)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(str(folder / "src"))
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == _PACKAGE]:
        del sys.modules[name]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What arrives at the webhook."""
    texts: list[str] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            texts.append(json.loads(self.rfile.read(length))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Not on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        monkeypatch.setenv("ALERT_URL", f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield texts
        server.shutdown()


def config_of(project: Path, pipeline: str) -> Path:
    return project / "src" / _PACKAGE / "defs" / pipeline / "etl.yaml"


def run_cells(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The notebook's code, from above, and what is left of it."""
    monkeypatch.chdir(project / "notebooks")
    notebook = json.loads(Path("explore.ipynb").read_text("utf-8"))
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    return names


def alerted_of(
    defs: Definitions, instance: DagsterInstance, result: ExecuteInProcessResult
) -> None:
    """What the daemon does about a run that has ended."""
    name = "alert_on_failed_checks" if result.success else "alert_on_failed_runs"
    sensor = defs.resolve_sensor_def(name)
    ended = result.get_run_success_event() if result.success else result.get_run_failure_event()
    context: Any = build_run_status_sensor_context(
        sensor_name=name,
        dagster_event=ended,
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    )
    sensor(context if result.success else context.for_run_failure())


def test_two_pipelines_sql_a_reconciliation_alerts_and_a_notebook(
    project: Path, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    etl_dagster.run(config_of(project, "support"), until_caught_up=True)
    defs = load_from_defs_folder(path_within_project=project / "src" / _PACKAGE)
    marts = [AssetKey(["marts", path.stem]) for path in project.rglob("defs/marts/*.sql")]
    shop = config_of(project, "shop")
    with searched_instance() as instance, etl_dagster.running(shop) as pipeline:
        assert pipeline.wait_until_caught_up(timeout_s=PATIENCE_S)

        made = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance, asset_selection=marts
        )
        assert made.success
        called = duckdb.sql(f"from '{project}/marts/customers_to_call.parquet'").fetchall()
        assert called == [("Ada", 1515000, 1)]

        def reconcile() -> ExecuteInProcessResult:
            job = defs.resolve_job_def("shop_reconciliation_job")
            result = job.execute_in_process(instance=instance)
            alerted_of(defs, instance, result)
            return result

        assert all(check.passed for check in reconcile().get_asset_check_evaluations())
        assert sent == []
        with duckdb.connect(str(project / "shop.duckdb")) as connection:
            connection.execute("delete from public.orders where id = 7")
        assert reconcile().success
        (text,) = sent
        assert text.startswith("raw/shop/orders: content_match: ")

        # A run that fails: the file with the rows is not where it was.
        (project / "support.duckdb").rename(project / "away")
        failed = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[AssetKey(["marts", "open_tickets"])],
            raise_on_error=False,
        )
        alerted_of(defs, instance, failed)
        assert "failed" in sent[-1]
        (project / "away").rename(project / "support.duckdb")

    names = run_cells(project, monkeypatch)
    assert set(names["shop"].table_states()) == {"public.customers", "public.orders"}
    assert names["support"].query("from public.tickets").num_rows == 2
    monkeypatch.delenv("SUPPORT_DSN")
    with pytest.raises(ConfigError, match=r"source\.dsn: the environment variable SUPPORT_DSN"):
        run_cells(project, monkeypatch)
