"""The settings of a DuckLake destination."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from etl_dagster.config import DestinationConfig
from etl_dagster.destinations.duckdb.config import MemoryLimit
from etl_dagster.destinations.ducklake.catalogs import Catalog, parse_catalog

_S3: Final = "s3://"
_BUCKET: Final = re.compile(r"s3://[A-Za-z0-9][A-Za-z0-9.\-_]{1,254}(/.*)?")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
#: As SQL names it, without quotes.
_PLAIN_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class DuckLakeDestinationConfig(DestinationConfig):
    """A DuckLake: its catalog in Postgres, or in a file, and Parquet files in a folder or in S3."""

    type: Literal["ducklake"]
    catalog: SecretStr = Field(
        description="A Postgres, as a libpq URI or key/value string; or a file on this machine: "
        "`sqlite:PATH` or `duckdb:PATH`."
    )
    data_path: str = Field(
        description="Where the Parquet files are: a folder, or `s3://BUCKET/PREFIX`."
    )
    metadata_schema: str | None = Field(
        None, description="Of a catalog in Postgres: the schema of its tables, by default `public`."
    )
    inline_rows: int = Field(
        1000,
        ge=0,
        le=1_000_000,
        description="A write of at most this many rows stays in the catalog until it is flushed; a "
        "larger one goes to a Parquet file.",
    )
    memory_limit: MemoryLimit = Field("512MB", description="For DuckDB's buffers.")
    lock_timeout_s: float = Field(
        60.0, gt=0, description="How long to wait for another process that writes."
    )
    changelog: bool = Field(False, description="Also keep the position of every change.")
    s3_key_id: str | None = Field(None, description="Access key of the bucket.")
    s3_secret: SecretStr | None = Field(None, description="Its secret.")
    s3_session_token: SecretStr | None = Field(None, description="Of temporary credentials.")
    s3_region: str | None = Field(None, description="Region of the bucket.")
    s3_endpoint: str | None = Field(
        None, description="HOST or HOST:PORT of another service than Amazon's."
    )
    s3_url_style: Literal["vhost", "path"] = Field(
        "vhost", description="How a bucket is addressed; most other services need `path`."
    )
    s3_use_ssl: bool = Field(True, description="False talks HTTP to the endpoint.")

    @field_validator("catalog")
    @classmethod
    def _readable(cls, value: SecretStr) -> SecretStr:
        parse_catalog(value.get_secret_value())
        return value

    @field_validator("data_path")
    @classmethod
    def _path(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        if value.startswith(_S3):
            if not _BUCKET.fullmatch(value):
                raise ValueError("must be s3://BUCKET or s3://BUCKET/PREFIX")
        elif _SCHEME.match(value):
            raise ValueError("must be a folder, or begin with s3://")
        return value

    @field_validator("metadata_schema")
    @classmethod
    def _name(cls, value: str | None) -> str | None:
        if value is not None and not _PLAIN_NAME.fullmatch(value):
            raise ValueError("must be a plain name: lower case letters, digits and _")
        return value

    @field_validator("s3_endpoint")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9.\-\[\]:]+", value):
            raise ValueError("must be HOST or HOST:PORT, without http:// and without a path")
        return value

    @field_validator("s3_key_id", "s3_region")
    @classmethod
    def _plain(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not (value.isprintable() and value.strip()):
            raise ValueError("must be printable, and not empty")
        return value

    @model_validator(mode="after")
    def _together(self) -> DuckLakeDestinationConfig:
        if self.metadata_schema is not None and not self.parsed_catalog.is_shared:
            raise ValueError("metadata_schema: only a catalog in Postgres has it")
        given = [name for name in type(self).model_fields if name.startswith("s3_")]
        if not self.is_in_s3:
            if used := [name for name in given if name in self.model_fields_set]:
                raise ValueError(f"{used[0]}: data_path is not in S3")
        elif (self.s3_key_id is None) != (self.s3_secret is None):
            raise ValueError("s3_key_id and s3_secret: give both, or neither")
        return self

    @property
    def is_in_s3(self) -> bool:
        return self.data_path.startswith(_S3)

    @property
    def parsed_catalog(self) -> Catalog:
        return parse_catalog(self.catalog.get_secret_value(), self.metadata_schema)

    @property
    def place(self) -> str:
        return f"DuckLake {self.parsed_catalog.place}, files in {self.data_path}"

    @property
    def odd_values_at(self) -> str:
        return f"They are in _etl.odd_values of the {self.place}."
