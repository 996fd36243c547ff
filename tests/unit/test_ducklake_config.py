"""What the section of a DuckLake may say, and that its secrets stay hidden."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from etl_dagster.config import parse_config
from etl_dagster.destinations.ducklake.config import DuckLakeDestinationConfig
from etl_dagster.destinations.ducklake.extensions import missing
from etl_dagster.errors import ConfigError
from tests.support.leaks import make_secret

SECRET = make_secret("h1dden")
AT_SERVER = f"postgresql://etl:{SECRET}@db.example.com:5433/lake"


def section(**given: Any) -> DuckLakeDestinationConfig:
    values = {"type": "ducklake", "catalog": AT_SERVER, "data_path": "/lake"} | given
    return DuckLakeDestinationConfig.model_validate(values)


def test_a_place_is_shown_without_the_password() -> None:
    config = section(s3_secret="als0", s3_key_id="k", data_path="s3://bucket/lake")

    assert config.place == (
        "DuckLake postgresql://etl@db.example.com:5433/lake, files in s3://bucket/lake"
    )
    for shown in (repr(config), str(config.parsed_catalog), config.place, config.odd_values_at):
        assert SECRET not in shown
        assert "als0" not in shown


@pytest.mark.parametrize("kind", ["duckdb", "sqlite"])
def test_a_catalog_may_be_a_file(kind: str) -> None:
    assert section(catalog=f"{kind}:/srv/lake.db").parsed_catalog.place == f"{kind}:/srv/lake.db"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"catalog": "lake.sqlite"}, "for a file, write sqlite:PATH or duckdb:PATH"),
        ({"catalog": "sqlite:"}, "must be followed by the path of a file"),
        ({"catalog": f"postgresql://u:p@{SECRET}@h/d"}, "percent-encoded"),
        ({"data_path": "gs://bucket/lake"}, "must be a folder, or begin with s3://"),
        ({"data_path": "s3://"}, "must be s3://BUCKET"),
        ({"s3_key_id": "k"}, "data_path is not in S3"),
        ({"data_path": "s3://bucket", "s3_key_id": "k"}, "give both, or neither"),
        ({"catalog": "sqlite:/x", "metadata_schema": "m"}, "only a catalog in Postgres has it"),
        ({"metadata_schema": "no name"}, "must be a plain name"),
        (
            {"data_path": "s3://b", "s3_endpoint": "http://minio:9000/"},
            "HOST or HOST:PORT, without http://",
        ),
        ({"memory_limit": "much"}, "must be a size"),
    ],
)
def test_a_mistake_is_reported_before_anything_starts(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        section(**given)


def test_a_mistake_in_a_dsn_shows_no_part_of_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(
            {
                "pipeline": "shop",
                "source": {"dsn": "dbname=shop", "publication": "p"},
                "destination": {
                    "type": "ducklake",
                    "catalog": f"postgresql://u:{SECRET}%ss@h/d",
                    "data_path": "/lake",
                },
            },
            {},
        )
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None or SECRET not in str(caught.value.__cause__)


def test_its_page_lists_every_setting_and_no_other() -> None:
    page = (Path(__file__).parents[2] / "docs/guides/ducklake.md").read_text("utf-8")
    [table] = re.findall(r"^\| setting \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]

    assert sorted(listed) == sorted(set(DuckLakeDestinationConfig.model_fields) - {"type"})


def test_a_missing_extension_names_what_to_install() -> None:
    failure = missing("postgres_scanner", "1.5.3")

    assert failure.solution == (
        "Install it: pip install duckdb==1.5.3 duckdb-extension-ducklake==1.5.3 "
        "duckdb-extension-postgres-scanner==1.5.3"
    )


def test_for_a_version_without_packages_an_earlier_one_is_named() -> None:
    failure = missing("ducklake", "2.0.1")

    assert failure.reason == "DuckDB's extension ducklake is not installed for DuckDB 2.0.1"
    assert failure.solution == (
        "Install a version that has it: pip install duckdb==1.5.5 duckdb-extension-ducklake==1.5.5"
    )
