"""A pipeline that runs is seen from outside: by Prometheus, in its log, live, and as a page."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.integration.test_cli import COMMAND, ROWS, Shop, shop_in
from tests.support.database import Database
from tests.support.waiting import PATIENCE_S
from tests.unit.test_exporters import scraped


@pytest.fixture
def shop(newest_database: Database, tmp_path: Path) -> Shop:
    return shop_in(newest_database, tmp_path)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def seen_by_prometheus(port: int, wanted: str, process: subprocess.Popen[str]) -> dict[str, float]:
    """What is scraped once `wanted` is above zero."""
    deadline = time.monotonic() + PATIENCE_S
    found: dict[str, float] = {}
    while found.get(wanted, 0.0) <= 0:
        assert time.monotonic() < deadline, f"{wanted} never rose above zero: {found}"
        assert process.poll() is None, "the pipeline has ended"
        time.sleep(0.1)
        try:
            found = scraped(port)
        except OSError:
            continue
    return found


def test_a_running_pipeline_is_scraped_logs_json_and_is_watched(shop: Shop) -> None:
    port = free_port()
    shop.configure(metrics={"listen": f"127.0.0.1:{port}"})
    process = shop.start("run", "--log-format", "json")
    try:
        labels = '{destination="duckdb",pipeline="shop",table="public.orders"}'
        seen_by_prometheus(port, f"etl_dagster_table_rows{labels}", process)
        shop.database.execute("insert into orders values (0, 'late', now())")
        changes = (
            'etl_dagster_table_changes_total{destination="duckdb",operation="insert",'
            'pipeline="shop",table="public.orders"}'
        )
        found = seen_by_prometheus(port, changes, process)
        assert found[changes] == 1.0
        assert found['etl_dagster_up{destination="duckdb",pipeline="shop"}'] == 1.0
        assert found['etl_dagster_write_seconds_count{pipeline="shop"}'] >= 1.0

        taken = shop.run("run")
        assert taken.returncode == 2
        assert "rows/s" in watched(shop, f"{ROWS + 1:,}", "Ctrl-C ends this view")
    finally:
        process.terminate()
        _, log = process.communicate(timeout=PATIENCE_S)
    lines = [json.loads(line) for line in log.splitlines()]
    assert {line["level"] for line in lines} <= {"INFO", "WARNING"}
    [copying] = [line for line in lines if line["message"].startswith("copying public.orders")]
    assert copying["pipeline"] == "shop"
    assert copying["table"] == "public.orders"
    [streamed] = [line for line in lines if "is streamed from now on" in line["message"]]
    assert re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", streamed["position"])

    page = shop.call("status", "--html", "status.html")
    assert page.returncode == 0, page.stderr
    html = (shop.folder / "status.html").read_text("utf-8")
    assert "public.orders" in html
    assert "not running" in html
    assert not re.search(r"(?:src|href)=", html)


def watched(shop: Shop, *wanted: str) -> str:
    """What `status --watch` shows on a terminal, up to all of these texts."""
    ours, its = pty.openpty()
    environ = os.environ | {"COLUMNS": "120", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(
        [*COMMAND, "status", "--watch"], cwd=shop.folder, stdout=its, stdin=its, env=environ
    )
    os.close(its)
    shown, deadline = "", time.monotonic() + PATIENCE_S
    try:
        while not all(text in shown for text in wanted):
            assert time.monotonic() < deadline, f"{wanted!r} was not shown: {shown[-2000:]}"
            shown += os.read(ours, 65536).decode("utf-8", "replace")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown


def test_watching_needs_a_terminal_and_a_pipeline(shop: Shop) -> None:
    refused = shop.call("status", "--watch")
    assert refused.returncode == 2
    assert "needs a terminal" in refused.stderr
    both = shop.call("status", "--json", "--html", "x.html")
    assert both.returncode == 2
