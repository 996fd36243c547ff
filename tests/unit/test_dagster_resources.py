"""Pipelines made of resources, and how their configuration reaches the replicator."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dagster import EnvVar

from etl_dagster.config import PipelineConfig, parse_config
from etl_dagster.errors import ConfigError
from etl_dagster.integrations.dagster import (
    DestinationResource,
    DuckDBDestinationResource,
    EtlConfigFileResource,
    EtlPipelineResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
    StateStoreResource,
    build_etl_definitions,
)
from etl_dagster.integrations.dagster.sensor.supervisor import config_payload
from etl_dagster.integrations.dagster.tables.discovery import discover_tables
from etl_dagster.integrations.dagster_meltano import MeltanoResource, MeltanoStateResource
from etl_dagster.stores.memory import MemoryStore
from tests.support.leaks import make_secret

PASSWORD = make_secret("p${HOME}$$'\"\\")


def pipeline(**source: Any) -> EtlPipelineResource:
    return EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(publication="etl_pub", database="shop", **source),
        state_store=PostgresStateStoreResource(schema_name="state"),
        destination=DuckDBDestinationResource(path="shop.duckdb"),
        settings={"copy": {"max_table_sync_workers": 2}},
    )


def test_resources_make_the_configuration_that_a_file_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    resource = pipeline(password=EnvVar("SHOP_PASSWORD"))
    with resource.process_config_and_initialize_cm() as ready:
        config = ready.load_config()
    assert config.source.password.get_secret_value() == PASSWORD
    assert config.state_store.schema_name == "state"
    assert config.copy_tables.max_table_sync_workers == 2


def test_the_replicator_gets_the_same_configuration_secrets_included() -> None:
    config = parse_config(
        {
            "pipeline": "shop",
            "source": {"database": "shop", "publication": "p", "password": make_secret("a$$b${X}")},
            "state_store": {"schema": "state", "dsn": f"postgresql://u:{make_secret()}@h/d"},
            "destination": {"type": "duckdb", "path": "/tmp/shop.duckdb"},
            "odd_values": "fail",
            "tables": {
                "public.orders": {
                    "copy": False,
                    "columns": {"a": {"nested": "json"}, "b": {"odd_values": None}},
                }
            },
        },
        {"X": "c"},
    )
    again = PipelineConfig.model_validate(json.loads(config_payload(config)))
    assert again == config
    assert [again.odd_policy("public.orders", name) for name in "ab"] == ["fail", "null"]
    assert again.source.password is not None
    assert again.source.password.get_secret_value() == make_secret("a$bc")


def test_memory_is_refused_because_dagster_uses_several_processes(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    path.write_text(
        "pipeline: shop\n"
        "source: {database: shop, publication: p}\n"
        "state_store: {type: memory}\n"
        "destination: {type: memory}\n"
    )
    with pytest.raises(ConfigError) as refused:
        build_etl_definitions(path)
    assert len(refused.value.mistakes) == 2


def test_definitions_load_without_the_source_and_remember_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sensor must tick to say what is wrong, and runs that have begun must continue."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    config = parse_config(
        {
            "pipeline": "shop",
            "source": {"dsn": "postgresql://u@127.0.0.1:1/d", "publication": "p"},
            "destination": {"type": "duckdb", "path": "x.duckdb"},
        },
        {},
    )
    found = discover_tables(config)
    assert found.tables == ()
    assert found.problem is not None
    known = tmp_path / "etl_dagster" / "shop.tables.json"
    known.parent.mkdir()
    known.write_text(
        json.dumps(
            [
                {
                    "id": 7,
                    "schema_name": "public",
                    "table_name": "orders",
                    "replica_identity": "d",
                    "publication": "p",
                    "columns": [{"name": "id", "type_oid": 20, "of_a_later_version": 1}],
                }
            ]
        )
    )
    assert [table.name for table in discover_tables(config).tables] == ["public.orders"]
    known.write_text("{")
    assert discover_tables(config).tables == ()


def test_a_configuration_file_is_read_at_each_use(tmp_path: Path) -> None:
    path = tmp_path / "etl.yaml"
    text = "pipeline: {}\nsource: {{database: d, publication: p}}\n" + (
        "destination: {{type: duckdb, path: x}}\n"
    )
    resource = EtlConfigFileResource(path=str(path))
    for name in ("one", "two"):
        path.write_text(text.format(name))
        assert resource.load_config().pipeline == name


TOKEN = make_secret("t${HOME}$$")
STATE_URI = f"postgres://u:{make_secret()}@h/d/s"


def test_a_variable_of_the_environment_is_read_at_any_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKEN", TOKEN)
    monkeypatch.setenv("ATTEMPTS", "7")
    monkeypatch.setenv("STATE_URI", STATE_URI)
    resource = EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(publication="etl_pub", database="shop"),
        state_store=StateStoreResource(type="postgres", config={"dsn": EnvVar("STATE_URI")}),
        destination=DestinationResource(
            type="http",
            config={
                "url": "https://example.com",
                "token": EnvVar("TOKEN"),
                "max_attempts": EnvVar.int("ATTEMPTS"),
                # What Dagster makes of an EnvVar in a dict may as well be meant literally.
                "headers": {"X-Key": EnvVar("TOKEN"), "env": "PATH"},
            },
        ),
        settings={"meltano": {"state_backend": EnvVar("STATE_URI")}, "batch": {"max_rows": 5}},
    )

    def check(config: PipelineConfig) -> None:
        destination: Any = config.destination
        assert destination.token.get_secret_value() == TOKEN
        assert destination.max_attempts == 7
        headers = {key: value.get_secret_value() for key, value in destination.headers.items()}
        assert headers == {"X-Key": TOKEN, "env": "PATH"}
        assert config.state_store.dsn.get_secret_value() == STATE_URI  # type: ignore[attr-defined]
        assert config.meltano.state_backend is not None
        assert config.meltano.state_backend.get_secret_value() == STATE_URI
        assert config.batch.max_rows == 5

    with resource.process_config_and_initialize_cm() as ready:
        check(ready.load_config())
    # In a notebook, too, where nothing has prepared the resource.
    check(resource.load_config())

    monkeypatch.delenv("TOKEN")
    with (
        resource.process_config_and_initialize_cm() as ready,
        pytest.raises(ConfigError) as missing,
    ):
        ready.load_config()
    assert missing.value.mistakes == (
        "destination.token: the environment variable TOKEN is not set",
        "destination.headers.X-Key: the environment variable TOKEN is not set",
    )


def test_several_destinations_are_given_as_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", TOKEN)
    resource = EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(publication="etl_pub", database="shop"),
        state_store=PostgresStateStoreResource(),
        destinations={
            "warehouse": DuckDBDestinationResource(path="shop.duckdb"),
            "events": DestinationResource(
                type="http", config={"url": "https://example.com", "token": EnvVar("TOKEN")}
            ),
        },
        settings={"fan_out": {"former": "warehouse"}},
    )
    one = resource.of_destination("events")

    def check(whole: PipelineConfig, config: PipelineConfig) -> None:
        assert list(whole.members()) == ["warehouse", "events"]
        assert whole.fan_out.former == "warehouse"
        assert config.pipeline == "shop__events"
        assert config.whole == whole
        assert config.destination.token.get_secret_value() == TOKEN  # type: ignore[attr-defined]

    with (
        resource.process_config_and_initialize_cm() as all_of_them,
        one.process_config_and_initialize_cm() as ready,
    ):
        check(all_of_them.load_config(), ready.load_config())
    check(resource.load_config(), one.load_config())
    with pytest.raises(ConfigError, match="there is no 'else'; there are: warehouse, events"):
        resource.of_destination("else").load_config()


@pytest.mark.parametrize(
    ("given", "mistake"),
    [
        ((), "destination: is required; or `destinations`"),
        (("destination", "destinations"), "either destination or destinations"),
    ],
)
def test_a_pipeline_has_one_destination_or_several(given: tuple[str, ...], mistake: str) -> None:
    place = DuckDBDestinationResource(path="shop.duckdb")
    both = {"destination": place, "destinations": {"left": place}}
    resource = EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(publication="etl_pub", database="shop"),
        state_store=PostgresStateStoreResource(),
        **{name: both[name] for name in given},
    )
    with pytest.raises(ConfigError, match=mistake):
        resource.load_config()


def several_resources(folder: Path) -> EtlPipelineResource:
    return EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(dsn="postgresql://u@127.0.0.1:1/d", publication="p"),
        state_store=PostgresStateStoreResource(),
        destinations={
            name: DuckDBDestinationResource(path=f"{folder}/{name}.duckdb")
            for name in ("left", "right")
        },
    )


def several_in_a_file(folder: Path) -> Path:
    path = folder / "etl.yaml"
    path.write_text(
        "pipeline: shop\n"
        "source: {dsn: postgresql://u@127.0.0.1:1/d, publication: p}\n"
        "destinations:\n"
        "  left: {type: duckdb, path: left.duckdb}\n"
        "  right: {type: duckdb, path: right.duckdb}\n"
    )
    return path


@pytest.mark.parametrize("make", [several_resources, several_in_a_file])
def test_each_of_several_destinations_has_a_sensor_and_a_resource(
    make: Callable[[Path], Path | EtlPipelineResource],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    defs = build_etl_definitions(make(tmp_path))
    assert {sensor.name for sensor in defs.sensors or ()} == {
        "shop__left_replication",
        "shop__right_replication",
    }
    resources = defs.resources or {}
    assert {name: made.load_config().destination.place for name, made in resources.items()} == {
        "shop__left": f"{tmp_path}/left.duckdb",
        "shop__right": f"{tmp_path}/right.duckdb",
    }


def test_a_secret_of_a_resource_is_not_in_what_dagster_stores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKEN", make_secret("very-secret"))
    resource = DestinationResource(type="http", config={"token": EnvVar("TOKEN")})
    assert make_secret("very-secret") not in repr(resource)
    assert resource.config == {"token": {"etl_dagster/env": "TOKEN"}}


def test_resources_work_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", PASSWORD)
    config = pipeline(password=EnvVar("SHOP_PASSWORD")).load_config()
    assert config.source.password is not None
    assert config.source.password.get_secret_value() == PASSWORD
    monkeypatch.setenv("PROJECT", "/srv/project")
    meltano = MeltanoResource(project_dir=EnvVar("PROJECT"), env={"A": EnvVar("SHOP_PASSWORD")})
    assert meltano.project().folder == Path("/srv/project")
    assert meltano.project().variables["A"] == PASSWORD
    monkeypatch.setenv("STATE_URI", "sqlite:///x")
    with pytest.raises(Exception, match="sqlite"):
        MeltanoStateResource(uri=EnvVar("STATE_URI")).list()
    monkeypatch.delenv("STATE_URI")
    with pytest.raises(ConfigError, match="uri: the environment variable STATE_URI is not set"):
        MeltanoStateResource(uri=EnvVar("STATE_URI")).list()


def test_what_a_resource_opens_has_the_settings_that_it_was_given(tmp_path: Path) -> None:

    resource = DuckDBDestinationResource(
        path=str(tmp_path / "x.duckdb"), memory_limit="64MB", changelog=True
    )
    destination = resource.get_destination()
    destination.startup(MemoryStore())
    destination.shutdown()
    kept = resource.query("select table_name from duckdb_tables() where schema_name = '_etl'")
    assert "changelog" in {row["table_name"] for row in kept.to_pylist()}


def test_a_store_behind_a_pooler_is_opened_with_both_addresses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[dict[str, Any]] = []

    class Spy:
        def __init__(self, dsn: str, pipeline: str, **options: Any) -> None:
            made.append({"dsn": dsn, "pipeline": pipeline} | options)

        def close(self) -> None: ...

    monkeypatch.setattr("etl_dagster.stores.postgres.PostgresStore", Spy)
    monkeypatch.setenv("DIRECT", "postgresql://direct/d")
    store = PostgresStateStoreResource(dsn="postgresql://pooler/d", session_dsn=EnvVar("DIRECT"))
    with store.get_store("shop"):
        pass
    assert made == [
        {
            "dsn": "postgresql://pooler/d",
            "pipeline": "shop",
            "schema": "etl",
            "session_dsn": "postgresql://direct/d",
        }
    ]


def test_variables_that_are_not_set_are_named_and_the_definitions_are_loaded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A code location that does not load has no sensor that could say so."""
    defs = build_etl_definitions(
        pipeline(host="127.0.0.1", port=1, password=EnvVar("NO_SUCH"), user=EnvVar("NOR_THIS"))
    )
    assert [sensor.name for sensor in defs.sensors or ()] == ["shop_replication"]
    for mistake in (
        "source.password: the environment variable NO_SUCH is not set",
        "source.user: the environment variable NOR_THIS is not set",
    ):
        assert mistake in caplog.text


def test_a_source_that_never_answers_does_not_hold_up_a_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers = threading.Event()

    def never(config: object) -> Any:
        answers.wait()

    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    found = discover_tables(pipeline().load_config(), ask_source=never, answer_timeout_s=0.2)
    answers.set()
    assert found.tables == ()
    assert found.problem is not None
    assert found.problem.reason == "the source did not answer in 0 s"
