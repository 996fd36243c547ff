"""What Meltano's log says, what a catalog holds, and how a run is asked for."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster_meltano import guard
from etl_dagster.integrations.dagster_meltano.catalog import (
    CatalogUnknown,
    Stream,
    StreamColumn,
    parse_catalog,
)
from etl_dagster.integrations.dagster_meltano.logs import LogLine, Metric, MetricsTally, parse_line
from etl_dagster.integrations.dagster_meltano.project import MeltanoError, MeltanoProject
from etl_dagster.integrations.dagster_meltano.runs import RunOptions, run_meltano, state_id
from tests.support.leaks import make_secret
from tests.support.waiting import PATIENCE_S

COUNT = {"type": "counter", "metric": "record_count", "value": 2, "tags": {"stream": "orders"}}


def entry(event: str, **more: Any) -> str:
    return json.dumps({"event": event, "level": "info"} | more)


def line(text: str) -> LogLine:
    parsed = parse_line(text)
    assert parsed is not None
    return parsed


def test_a_line_comes_at_its_own_level_and_names_its_plugin() -> None:
    assert line(entry("slow", level="warning", name="tap-x")) == LogLine(
        logging.WARNING, "tap-x: slow", "tap-x"
    )
    assert line(entry("gone", level="exception")).level == logging.ERROR
    assert line(entry("odd", level="whatever")).level == logging.INFO


def test_an_exception_is_shown_with_its_causes_and_without_its_frames() -> None:
    meltanos = [
        {
            "exc_type": "StatePersistenceError",
            "exc_value": "not written",
            "frames": [{"lineno": 1}],
        },
        {"exc_type": "PostgresStateError", "exc_value": "no room", "is_cause": True, "frames": []},
    ]
    assert line(entry("failed", exception=meltanos)).text == (
        "failed\nStatePersistenceError: not written\nPostgresStateError: no room"
    )
    a_plugins = {"type": "KeyError", "message": "id", "traceback": []}
    assert line(entry("failed", plugin_exception=a_plugins)).text == "failed\nKeyError: id"
    assert line(entry("failed", exception="Traceback ...")).text == "failed\nTraceback ..."


def test_what_is_not_json_is_text() -> None:
    assert line("2026 [info] Meltano 4.4.1\n") == LogLine(logging.INFO, "2026 [info] Meltano 4.4.1")
    assert line('["an", "array"]').text == '["an", "array"]'
    assert parse_line("  \n") is None


@pytest.mark.parametrize(
    "text",
    [
        entry("METRIC", metric_info=COUNT),
        entry(f"2026-01-01 | INFO | METRIC: {json.dumps(COUNT)}"),
        f"INFO METRIC: {json.dumps(COUNT | {'tags': {'endpoint': 'orders'}})}",
    ],
)
def test_metrics_are_read_in_every_form_that_taps_write(text: str) -> None:
    assert line(text).metric == Metric("record_count", 2.0, "orders")


@pytest.mark.parametrize("payload", [{}, {"metric": 1}, {"metric": "a", "value": "b"}, [], 3])
def test_what_is_not_a_metric_stays_a_text(payload: Any) -> None:
    assert line(f"METRIC: {json.dumps(payload)}").metric is None
    assert line(entry("METRIC", metric_info=payload)).metric is None


def test_counts_are_summed_and_a_loader_does_not_count_twice() -> None:
    tally = MetricsTally()
    for text in (
        entry("METRIC", metric_info=COUNT, producer=True),
        entry("METRIC", metric_info=COUNT, producer=True),
        entry("METRIC", metric_info=COUNT, consumer=True, producer=False),
        entry("METRIC", metric_info=COUNT | {"tags": {}}),
        entry("Run completed", duration_seconds=1.5),
        entry("bad", level="error"),
    ):
        tally.add(line(text))
    assert tally.streams["orders"].records == 4
    assert list(tally.streams) == ["orders"]
    assert tally.duration_s == 1.5
    assert tally.errors == ["bad"]


def test_of_many_errors_the_latest_are_kept() -> None:
    """A tap that logs an error for each record must not fill the memory of the step."""
    tally = MetricsTally()
    for number in range(1_000):
        tally.add(line(entry(f"Failed to persist state {number}", level="error")))
    assert len(tally.errors) == 20
    assert tally.errors[-1] == tally.unwritten == "Failed to persist state 999"


# -- catalogs ------------------------------------------------------------------------------------


def catalog(*metadata: dict[str, Any], **more: Any) -> dict[str, Any]:
    items = [{"breadcrumb": [], "metadata": {"selected": True}}, *metadata]
    return {"streams": [{"tap_stream_id": "s", "metadata": items} | more]}


def test_only_selected_streams_and_properties_are_known() -> None:
    properties = {
        "id": {"type": "integer"},
        "at": {"type": ["null", "string"], "format": "date-time"},
        "any": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "unwanted": {"type": "string"},
        "untyped": {},
    }
    found = parse_catalog(
        catalog(
            {
                "breadcrumb": ["properties", "unwanted"],
                "metadata": {"inclusion": "available", "selected": False},
            },
            {"breadcrumb": ["properties", "id"], "metadata": {"inclusion": "automatic"}},
            schema={"properties": properties},
            key_properties=["id"],
            replication_method="INCREMENTAL",
            replication_key="at",
        )
    )
    assert found == (
        Stream(
            "s",
            (
                StreamColumn("id", "integer", nullable=False),
                StreamColumn("at", "string (date-time)", nullable=True),
                StreamColumn("any", "string", nullable=True),
                StreamColumn("untyped", "any", nullable=False),
            ),
            ("id",),
            "INCREMENTAL",
            "at",
        ),
    )
    left_out = {"breadcrumb": [], "metadata": {"selected": False}}
    assert parse_catalog({"streams": [{"tap_stream_id": "s", "metadata": [left_out]}]}) == ()


@pytest.mark.parametrize("payload", [{}, [], None, {"streams": [1]}, {"streams": 3}])
def test_output_that_is_not_a_catalog_is_an_error(payload: Any) -> None:
    with pytest.raises(CatalogUnknown):
        parse_catalog(payload)


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_is_never_forced() -> None:
    everything = RunOptions("id", True, True, "suffix", ("a",))
    arguments = everything.arguments("tap-x", "target-y")
    assert arguments[0] == "run"
    assert arguments[-2:] == ["tap-x", "target-y"]
    assert {"--run-id=id", "--full-refresh", "--refresh-catalog", "--state-id-suffix=suffix"} < set(
        arguments
    )
    assert "--force" not in arguments
    assert RunOptions().arguments("tap-x", "target-y") == ["run", "tap-x", "target-y"]


def test_a_choice_of_streams_keeps_the_bookmarks_of_the_others() -> None:
    some = RunOptions(select_filter=("a", "b"))
    assert "--state-strategy=merge" in some.arguments("tap-x", "target-y")
    assert some.variables("tap-x.y")["TAP_X_Y__SELECT_FILTER"] == '["a", "b"]'


def test_state_ids_are_made_as_meltano_makes_them() -> None:
    assert state_id("dev", "tap-x", "target-y") == "dev:tap-x-to-target-y"
    assert state_id("dev", "tap-x", "target-y", "blue") == "dev:tap-x-to-target-y:blue"
    with pytest.raises(EtlError, match="colon"):
        state_id("dev", "tap:x", "target-y")


def test_a_command_that_does_not_answer_is_ended_together_with_its_tap(tmp_path: Path) -> None:
    """Each load of the definitions would leave another tap behind."""
    (tmp_path / "meltano.yml").write_text("{}")
    os.mkfifo(tmp_path / "held")
    program = tmp_path / "meltano"
    program.write_text(f"#!/bin/sh\n(echo up; sleep 600) > '{tmp_path}/held' &\nwait\n")
    program.chmod(0o755)
    project = MeltanoProject(tmp_path, executable=str(program))
    # Has an end once no process holds the other side of the pipe.
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for timeout_s in (0.5, 5.0, PATIENCE_S):  # the machine may be busy
            with pytest.raises(MeltanoError, match="gave no answer"):
                project.ask("invoke", timeout_s=timeout_s)
            ready, _, _ = select.select([held], [], [], 0)
            if ready and os.read(held, 8) == b"up\n":
                break
        ready, _, _ = select.select([held], [], [], PATIENCE_S)
        assert ready
        assert os.read(held, 8) == b""
    finally:
        os.close(held)


def test_a_plugin_that_outlives_meltano_ends_with_the_killed_step(tmp_path: Path) -> None:
    """Meltano obeys SIGTERM; its tap does not, and holds the pipe."""
    os.mkfifo(tmp_path / "held")
    held = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    tap = f"(trap '' TERM; echo up; sleep 600) > '{tmp_path}/held' &"
    guarded = [sys.executable, "-I", guard.__file__, "/bin/sh", "-c", f"{tap} wait"]
    step = subprocess.Popen(guarded, stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert select.select([held], [], [], PATIENCE_S)[0]
        assert os.read(held, 8) == b"up\n"
        assert step.stdin is not None
        step.stdin.close()  # as it is when the step is killed
        step.wait(PATIENCE_S)
        assert select.select([held], [], [], PATIENCE_S)[0]
        assert os.read(held, 8) == b""
    finally:
        os.close(held)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(step.pid, signal.SIGKILL)


def test_secrets_of_variables_files_and_json_are_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster keeps the log, and shows it to everyone who sees the run."""
    given, inherited, filed, in_uri = (make_secret(like) for like in ('g"', "i", "f", "u"))
    monkeypatch.setenv("TAP_SHOP_PASSWORD", inherited)
    monkeypatch.setenv("SHOP_DSN", f"postgres://me:{in_uri}@host/shop")
    monkeypatch.setenv("SHOP_KEY_FILE", "/etc/shop.key")
    (tmp_path / ".env").write_text(f"SHOP_TOKEN={filed}\n")
    (tmp_path / "meltano.yml").write_text("{}")
    said = f"{given} {inherited} {filed} {in_uri} /etc/shop.key"
    (tmp_path / "log").write_text(json.dumps({"event": said, "level": "info"}))
    program = tmp_path / "meltano"
    program.write_text(f"#!/bin/sh\ncat '{tmp_path}/log'\n")
    program.chmod(0o755)
    project = MeltanoProject(
        tmp_path, executable=str(program), variables={"TAP_SHOP_SECRET": given}
    )

    heard: list[LogLine] = []
    run_meltano(project, "tap-shop", "target-x", RunOptions(), on_log=heard.append)
    for name in (".env", "log"):  # they hold secrets on purpose
        (tmp_path / name).unlink()

    assert [line.text for line in heard] == ["*** *** *** *** /etc/shop.key"]
