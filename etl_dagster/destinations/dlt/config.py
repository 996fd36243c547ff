"""The settings of a destination of dlt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from etl_dagster.config import DestinationConfig, TableMode

_PLACEHOLDER = "{schema}"
#: Arguments of dlt for which there is a setting here, and that setting.
_SETTINGS_OF_OURS = {
    "destination_name": "destination_name",
    "naming_convention": "naming",
    "ref": "destination",
}


class DltDestinationConfig(DestinationConfig):
    """A destination of dlt; what isn't here is configured as dlt documents it."""

    type: Literal["dlt"]
    destination: str = Field(
        description="dlt's name for it: `postgres`, `bigquery`, `snowflake`, "
        "`filesystem`, `duckdb`, ..."
    )
    destination_name: str | None = Field(
        None,
        description="A name of your own, under which dlt looks for its settings, such as "
        "`[destination.NAME.credentials]` in `secrets.toml`.",
    )
    dataset: str = Field(
        "{schema}",
        description="The dataset of a table; `{schema}` stands for its schema in the source.",
    )
    credentials: SecretStr | None = Field(
        None, description="As text, such as a URL; better in dlt's `secrets.toml` or environment."
    )
    options: dict[str, Any] = Field(
        {}, description="Further settings of the destination, such as `bucket_url`."
    )
    table_format: Literal["delta", "iceberg"] | None = Field(
        None,
        description="Format of tables in `filesystem`; by default plain Parquet files. Only "
        "Delta tables can be mirrors.",
    )
    naming: Literal["sql_ci_v1", "sql_cs_v1", "snake_case", "direct"] = Field(
        "sql_ci_v1",
        description="dlt's convention for names. Names that it makes equal are refused.",
    )
    work_folder: Path | None = Field(
        None,
        description="Where load packages are until they are loaded; by default in the folder for "
        "temporary files. Nothing in it is needed after the process ends.",
    )

    @property
    def place(self) -> str:
        """Where it is, for people; without any secret."""
        place = f"{self.destination_name or self.destination} of dlt, dataset {self.dataset}"
        if not self.is_filesystem or self.table_format == "delta":
            return place
        return f"{'Iceberg tables' if self.table_format else 'files'} in {place}"

    @property
    def is_filesystem(self) -> bool:
        """Whether tables are files in a bucket or folder."""
        return self.destination.rpartition(".")[2] == "filesystem"

    @property
    def odd_values_at(self) -> str:
        return "Only their number is known: dlt has no place for them."

    def refusal(self, choice: str) -> str | None:
        if choice == "native":
            return "dlt loads values with parts as text only; set it to json or text"
        return None

    def mode_refusal(self, mode: TableMode) -> str | None:
        if mode == "mirror":
            files = "plain files" if self.table_format is None else "Iceberg tables"
            return f"dlt deletes no rows from {files}: only Delta tables are mirrored"
        return None

    def left_by_mode(self, before: TableMode, now: TableMode) -> str | None:
        if before == "mirror":
            return None
        return (
            "dlt can't rename a table, so the table stops until you rename or drop the one at the "
            "destination"
        )

    @field_validator("dataset")
    @classmethod
    def _formats(cls, dataset: str) -> str:
        rest = dataset.replace(_PLACEHOLDER, "")
        if not dataset or not re.fullmatch(r"[A-Za-z0-9_]*", rest):
            raise ValueError("must hold only letters, digits, _ and {schema}")
        return dataset

    @field_validator("options")
    @classmethod
    def _only_further_settings(cls, options: dict[str, Any]) -> dict[str, Any]:
        if "credentials" in options:
            raise ValueError(
                "must not hold credentials; use destination.credentials, or dlt's secrets.toml"
            )
        for name in sorted(_SETTINGS_OF_OURS.keys() & options.keys()):
            raise ValueError(f"must not hold {name}: use destination.{_SETTINGS_OF_OURS[name]}")
        return options
