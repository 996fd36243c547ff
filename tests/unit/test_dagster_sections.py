"""A resource has the settings of its section, whatever these are: it is made from the model."""

from __future__ import annotations

import ast
import inspect
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from dagster import Definitions, EnvVar
from pydantic import AfterValidator, BaseModel, Field, SecretStr

from etl_dagster.config import DestinationConfig, SourceConfig, parse_config
from etl_dagster.integrations.dagster import (
    DltDestinationResource,
    DuckDBDestinationResource,
    DuckLakeDestinationResource,
    EtlPipelineResource,
    HttpDestinationResource,
    PostgresDestinationResource,
    PostgresSourceResource,
    PostgresStateStoreResource,
    SingerDestinationResource,
    destination_resource,
    state_store_resource,
)
from etl_dagster.integrations.dagster.resources.sections import of_model
from etl_dagster.kinds import DESTINATIONS, STORES, UnknownKind, built_in_kinds, find_config_model
from tests.support.leaks import make_secret

RESOURCES: dict[tuple[str, str], Any] = {
    ("source", ""): PostgresSourceResource,
    ("state_store", "postgres"): PostgresStateStoreResource,
    ("destination", "duckdb"): DuckDBDestinationResource,
    ("destination", "ducklake"): DuckLakeDestinationResource,
    ("destination", "http"): HttpDestinationResource,
    ("destination", "postgres"): PostgresDestinationResource,
    ("destination", "singer"): SingerDestinationResource,
    ("destination", "dlt"): DltDestinationResource,
}
#: By type, each setting with a value that isn't its default; with the place, too, where two places
#: have a type of that name.
GIVEN: dict[str, dict[str, Any]] = {
    "": {
        "publication": "etl_pub",
        "dsn": "postgresql://u@h/d",
        "host": "db",
        "port": 5433,
        "user": "etl",
        "password": make_secret("pa55"),
        "database": "shop",
        "sslmode": "require",
        "sslrootcert": "/r",
        "sslcert": "/c",
        "sslkey": "/k",
        "connect_timeout_s": 3,
        "keepalive_idle_s": 20,
        "keepalive_interval_s": 5,
        "keepalive_count": 2,
        "streaming": "off",
        "failover": True,
        "standby": True,
        "primary_dsn": f"host=db1 password={make_secret()}",
        "max_retained_wal": 2_000_000,
        "heartbeat_s": 5.0,
        "receiver_timeout_s": 20.0,
    },
    "postgres": {"dsn": "dbname=s", "session_dsn": "dbname=t", "schema_name": "state"},
    "destination postgres": {"dsn": "dbname=d", "user_types": "create", "changelog": True},
    "duckdb": {"path": "x.duckdb", "memory_limit": "1GB", "lock_timeout_s": 5, "changelog": True},
    "ducklake": {
        "catalog": f"postgresql://u:{make_secret()}@h/d",
        "data_path": "s3://bucket/lake",
        "metadata_schema": "lake",
        "inline_rows": 50,
        "memory_limit": "1GB",
        "lock_timeout_s": 5,
        "changelog": True,
        "s3_key_id": "AKIA",
        "s3_secret": "s3cret",
        "s3_session_token": "t0ken",
        "s3_region": "eu-central-1",
        "s3_endpoint": "minio:9000",
        "s3_url_style": "path",
        "s3_use_ssl": False,
    },
    "http": {
        "url": "https://example.com",
        "token": make_secret("t0ken"),
        "headers": {"X-Key": "k3y"},
        "hmac_secret": make_secret("h"),
        "format": 1,
        "gzip": True,
        "timeout_s": 3.5,
        "max_attempts": 2,
        "max_connections": 3,
        "max_body_bytes": 2048,
        "verify": False,
        "ca_file": "/ca",
    },
    "singer": {
        "target": "target-jsonl",
        "config": {
            "password": make_secret("pa55"),
            "port": 5433,
            "ssl_enable": True,
            "more": {"a": ["b"]},
        },
        "config_file": "/config.json",
        "project": "/meltano",
        "environment": "prod",
        "env": {"TOKEN": "t0ken"},
        "stream": "{table}",
        "activate_version": False,
        "unchanged": "omit",
        "json_values": "value",
        "decimals": "number",
        "flush_after_seconds": 2.5,
        "stalled_after_seconds": 30.5,
        "stderr_file": "/target.log",
    },
    "dlt": {
        "destination": "filesystem",
        "destination_name": "lake",
        "dataset": "shop_{schema}",
        "credentials": "hush",
        "options": {"bucket_url": "s3://lake"},
        "table_format": "delta",
        "naming": "direct",
        "work_folder": "/packages",
    },
}


def given_of(place: str, kind: str) -> dict[str, Any]:
    return GIVEN.get(f"{place} {kind}") or GIVEN[kind]


def model_of(place: str, kind: str) -> type[BaseModel]:
    if place == "source":
        return SourceConfig
    model: type[BaseModel] = find_config_model(
        DESTINATIONS if place == "destination" else STORES, kind
    )
    return model


@pytest.mark.parametrize(("place", "kind"), RESOURCES)
def test_every_setting_is_a_field_with_the_same_default_and_description(
    place: str, kind: str
) -> None:
    model, resource = model_of(place, kind), RESOURCES[place, kind]
    settings = {name: field for name, field in model.model_fields.items() if name != "type"}

    assert set(resource.model_fields) == set(settings)
    for name, setting in settings.items():
        field = resource.model_fields[name]
        assert field.is_required() == setting.is_required(), name
        assert field.description == setting.description, name
        assert field.description, f"{place}.{name} is not described"
        if not setting.is_required():
            assert field.default == setting.default, name


@pytest.mark.parametrize(("place", "kind"), RESOURCES)
def test_a_section_of_a_resource_is_the_section_of_the_file(place: str, kind: str) -> None:
    model, given = model_of(place, kind), given_of(place, kind)
    assert set(given) == set(model.model_fields) - {"type"}, "give every setting another value"
    required = {
        name: given[name]
        for name, field in model.model_fields.items()
        if name in given and field.is_required()
    }
    for values in (given, required | ({"database": "d"} if place == "source" else {})):
        in_the_file = values if place == "source" else {"type": kind} | values
        found = model.model_validate(RESOURCES[place, kind](**values).settings())

        assert found == model.model_validate(in_the_file)
    assert model.model_validate(RESOURCES[place, kind](**given).settings()) != found


@pytest.mark.parametrize(("place", "kind"), RESOURCES)
def test_what_type_checkers_see_are_the_fields(place: str, kind: str) -> None:
    """The classes that are written out for them can't lack a setting either."""
    resource = RESOURCES[place, kind]
    base = ast.parse(inspect.getsource(resource)).body[0]
    assert isinstance(base, ast.ClassDef)
    [name] = [node.id for node in base.bases if isinstance(node, ast.Name)]
    tree = ast.parse(inspect.getsource(sys.modules[resource.__module__]))
    shown = next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == name)
    seen = {
        line.target.id: (line.annotation, line.value)
        for line in shown.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    }

    assert list(seen) == list(resource.model_fields)
    for setting, (annotation, value) in seen.items():
        field = resource.model_fields[setting]
        assert eval(ast.unparse(annotation)) == field.annotation, setting
        if value is None:
            assert field.is_required(), setting
            continue
        default = eval(ast.unparse(value), {"Field": lambda default: default})
        assert default == field.default, setting


@pytest.mark.parametrize(("place", "kind"), RESOURCES)
def test_secrets_are_masked_where_dagster_shows_a_resource(place: str, kind: str) -> None:
    secrets = {
        name
        for name, field in model_of(place, kind).model_fields.items()
        if "Secret" in str(field.annotation)
    }
    shown = RESOURCES[place, kind].to_config_schema().config_type.fields

    assert {name for name, field in shown.items() if field.is_secret} == secrets


def test_a_resource_with_every_setting_is_one_that_dagster_takes() -> None:
    made = {
        f"{place}_{kind}": resource(**given_of(place, kind))
        for (place, kind), resource in RESOURCES.items()
    }

    Definitions(resources=made)


def test_none_stands_for_the_default() -> None:
    """So that a variable that may be unset can be handed on as it is."""
    given: Any = {"path": "x.duckdb", "lock_timeout_s": None, "changelog": None}

    assert DuckDBDestinationResource(**given).settings() == {
        "type": "duckdb",
        "path": "x.duckdb",
        "memory_limit": "256MB",
        "lock_timeout_s": 60.0,
        "changelog": False,
    }


def test_a_variable_of_the_environment_stands_for_a_setting_at_any_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKEN", make_secret("t0ken"))
    monkeypatch.setenv("ATTEMPTS", "7")
    pipeline = EtlPipelineResource(
        pipeline="shop",
        source=PostgresSourceResource(publication="etl_pub", database="shop"),
        state_store=PostgresStateStoreResource(),
        destination=HttpDestinationResource(
            url="https://example.com",
            token=EnvVar("TOKEN"),
            headers={"X-Key": EnvVar("TOKEN")},
            max_attempts=EnvVar.int("ATTEMPTS"),
        ),
    )
    expected = parse_config(
        {
            "pipeline": "shop",
            "source": {"publication": "etl_pub", "database": "shop"},
            "destination": {
                "type": "http",
                "url": "https://example.com",
                "token": make_secret("t0ken"),
                "headers": {"X-Key": make_secret("t0ken")},
                "max_attempts": 7,
            },
        },
        {},
    )

    with pipeline.process_config_and_initialize_cm() as ready:
        assert ready.load_config() == expected
    # In a notebook, too, where nothing has prepared the resource.
    assert pipeline.load_config() == expected


# -- of any type ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "make"), [(DESTINATIONS, destination_resource), (STORES, state_store_resource)]
)
def test_every_type_has_a_resource(group: str, make: Any) -> None:
    for kind in built_in_kinds(group):
        settings = set(find_config_model(group, kind).model_fields) - {"type"}
        assert set(make(kind).model_fields) == settings
    with pytest.raises(UnknownKind, match="known are"):
        make("nothing")


class Level(Enum):
    LOW = "low"


class Login(BaseModel):
    user: str = "etl"


class PaperConfig(DestinationConfig):
    """Sheets of paper."""

    type: Literal["paper"]
    folder: Path = Field(Path("out"), description="Where the sheets are.")
    size: Literal["a4", "a5"] = "a4"
    sides: Literal[1, 2, "both"] = 1
    weight: Annotated[int, AfterValidator(lambda grams: grams)] = 80
    token: SecretStr = SecretStr("none")
    colours: frozenset[str] = frozenset({"black"})
    margins: tuple[int, ...] = (1, 2)
    level: Level = Level.LOW
    login: Login = Login()
    either: int | str | None = None
    printed: list[str] = Field(default_factory=list)
    ink: dict[str, SecretStr] | None = None


def test_a_model_with_types_that_dagster_does_not_have_still_becomes_a_resource() -> None:
    paper = of_model(PaperConfig, None, "destination", "paper")
    given = {
        "folder": "there",
        "size": "a5",
        "sides": "both",
        "weight": 100,
        "token": make_secret("t"),
        "colours": ["red"],
        "margins": [3],
        "level": "low",
        "login": {"user": "me"},
        "either": "text",
        "printed": ["p"],
        "ink": {"blue": "b"},
    }

    assert PaperConfig.model_validate(paper().settings()) == PaperConfig(type="paper")
    assert PaperConfig.model_validate(paper(**given).settings()) == PaperConfig.model_validate(
        {"type": "paper"} | given
    )
    Definitions(resources={"paper": paper(**given)})
    assert paper.__doc__ == "Sheets of paper."
    assert {name for name, field in paper.model_fields.items() if field.json_schema_extra} == {
        "token",
        "ink",
    }
