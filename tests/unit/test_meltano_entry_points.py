"""What Meltano finds by entry points, and that loading it is cheap."""

from __future__ import annotations

from importlib.metadata import distribution

import pytest

from tests.support.leaks import make_secret
from tests.unit.test_light_import import loaded_by

SECRET = make_secret("geheim")

pytest.importorskip("meltano")

#: As the documentation lists them.
SETTINGS = {
    *("host", "port", "user", "password", "database", "schema", "sslmode"),
    *("sslrootcert", "sslcert", "sslkey", "connect_timeout", "application_name", "options"),
    *("state_table", "locks_table", "create_tables", "lock_wait_seconds"),
    *("history_versions", "history_days"),
}
NAMESPACES = ("postgres", "postgresql")


def test_every_setting_is_found_in_both_namespaces() -> None:
    points = distribution("etl-dagster").entry_points.select(group="meltano.settings")
    found = {point.load().name for point in points}
    assert found == {f"state_backend.{n}.{s}" for n in NAMESPACES for s in SETTINGS}


def test_either_namespace_works_with_either_scheme() -> None:
    from etl_dagster.integrations.meltano.settings import POSTGRES, POSTGRESQL

    assert POSTGRES.host.aliases == [POSTGRESQL.host.name]
    assert POSTGRESQL.host.aliases == [POSTGRES.host.name]


def test_the_password_is_marked_as_one() -> None:
    from etl_dagster.integrations.meltano.settings import POSTGRES

    assert POSTGRES.password.is_redacted
    assert not POSTGRES.host.is_redacted


def test_the_backend_is_found_under_both_schemes() -> None:
    from etl_dagster.integrations.meltano.backend import PostgresStateBackend

    points = distribution("etl-dagster").entry_points.select(group="meltano.state_backends")
    assert {point.name: point.load() for point in points} == dict.fromkeys(
        NAMESPACES, PostgresStateBackend
    )


def test_the_settings_load_nothing_but_meltano() -> None:
    """Every `meltano` command loads them, whatever its backend."""
    meltanos = loaded_by("import meltano.core.setting_definition")
    ours = loaded_by("import etl_dagster.integrations.meltano.settings")
    assert ours - meltanos == {"etl_dagster"}


def test_the_storage_loads_neither_meltano_nor_dagster() -> None:
    loaded = loaded_by("import etl_dagster.integrations.meltano.states.storage")
    heavy = {"meltano", "dagster", "pyarrow", "pydantic", "numpy", "sqlalchemy", "psycopg_pool"}
    assert not loaded & heavy


def test_a_manager_keeps_its_password_to_itself() -> None:
    from etl_dagster.integrations.meltano.backend import PostgresStateBackend

    backend = PostgresStateBackend(f"postgres://person:{SECRET}@h/db/s", host=None, password=None)
    for text in (repr(backend), backend.label, repr(backend.storage), repr(vars(backend))):
        assert SECRET not in text
    assert "h/db, schema s" in backend.label


def test_errors_are_meltanos_and_say_what_to_do() -> None:
    from meltano.core.error import MeltanoError
    from meltano.core.state_store.base import UnsupportedStateBackendURIError

    from etl_dagster.integrations.meltano.backend import PostgresStateBackend

    with pytest.raises(UnsupportedStateBackendURIError) as refused:
        PostgresStateBackend(f"postgres://u:{SECRET}@x@h/db")
    assert isinstance(refused.value, MeltanoError)
    assert refused.value.reason
    assert refused.value.instruction
    assert SECRET not in str(refused.value)
