"""A demo that can't start says so and creates nothing."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from etl_dagster.config import parse_config
from etl_dagster.demo import app
from etl_dagster.demo.app import run_demo
from etl_dagster.demo.databases import Databases
from etl_dagster.demo.flights import SampleDataMissing
from etl_dagster.demo.ports import HOST
from etl_dagster.demo.server import EmbeddedPostgres, PortInUse


def test_a_port_in_use_is_reported_before_anything_is_created(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(PortInUse, match=str(port)):
            run_demo(tmp_path / "demo", port=port)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_reported_before_anything_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SampleDataMissing) as caught:
        run_demo(tmp_path / "demo")
    assert "pip install" in caught.value.solution
    assert list(tmp_path.iterdir()) == []


def test_the_demo_writes_a_configuration_without_mistakes(
    newest_server: EmbeddedPostgres,
) -> None:
    import yaml

    passwords = {"etl": "a$b${c}'d", "airline": "x", "dagster": "in no file"}
    access = Databases(newest_server, passwords)

    config = parse_config(yaml.safe_load(app._etl_yaml(access)), {})

    assert "a$b${c}" in config.source.conninfo()
    assert config.source.publication == "flights_pub"
    assert config.pipeline == "flights"
    # Dagster shows these settings to everybody who may list processes.
    assert "in no file" not in app._dagster_yaml(access)
