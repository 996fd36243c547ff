"""The settings of a Singer target."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

from pydantic import Field, SecretStr, field_validator, model_validator

from etl_dagster.config import DestinationConfig, TableMode

#: A setting of the target. Text is kept as a secret, for any of it may be one.
TargetSetting: TypeAlias = SecretStr | bool | int | float | list[Any] | dict[str, Any] | None

_PLACES: Final = frozenset({"schema", "table"})


class SingerDestinationConfig(DestinationConfig):
    """A Singer target, run as a process: a program of its own, or a loader of a Meltano project."""

    type: Literal["singer"]
    target: str = Field(
        min_length=1,
        description="The program: its name on PATH or its path from the configuration file; with "
        "`project`, a loader's name there.",
    )
    config: dict[str, TargetSetting] = Field(
        {}, description="The target's own settings; secrets better from the environment."
    )
    config_file: Path | None = Field(
        None, description="A JSON file with the target's settings; those of `config` win."
    )
    project: Path | None = Field(
        None, description="Folder of the Meltano project that has the loader and its settings."
    )
    environment: str | None = Field(
        None, min_length=1, description="Meltano's environment; by default the project's own."
    )
    env: dict[str, SecretStr] = Field({}, description="Further variables of its environment.")
    stream: str = Field(
        "{schema}-{table}",
        description="A table's stream. Targets take the part before the hyphen for the schema.",
    )
    activate_version: bool | None = Field(
        None,
        description="Whether the target empties a table by ACTIVATE_VERSION; by default what its "
        "`--about` says.",
    )
    unchanged: Literal["refuse", "omit"] = Field(
        "refuse",
        description="What becomes of an update with a TOAST value that Postgres left out: the "
        "table stops, or the value is left out of the record, for targets that then keep it.",
    )
    json_values: Literal["text", "value"] = Field(
        "text",
        description="How json and jsonb are sent: as the text that they are, or as JSON values.",
    )
    decimals: Literal["string", "number"] = Field(
        "string",
        description="How numeric with a precision is sent: as a string of digits, with the format "
        "`x-singer.decimal`, or as a number, of which some targets keep 15 digits.",
    )
    flush_after_seconds: float = Field(
        0,
        ge=0,
        le=3600,
        description="How long to wait for the target's STATE before its input is closed, so that "
        "it writes everything. More than 0 is for targets that send STATE messages without that.",
    )
    stalled_after_seconds: float = Field(
        600,
        gt=0,
        description="A target that has read, written and logged nothing for this long is ended.",
    )
    stderr_file: Path | None = Field(
        None,
        description="Gets what the target writes to stderr, as it is: rows' values may be in it.",
    )

    def relative_to(self, folder: Path) -> Self:
        """As for every section; `target` too, where it is a path."""
        section = super().relative_to(folder)
        if "/" not in self.target:
            return section
        return section.model_copy(update={"target": str(folder / Path(self.target).expanduser())})

    @property
    def target_name(self) -> str:
        """For people, without the folders of a path."""
        return self.target.rpartition("/")[2]

    @property
    def place(self) -> str:
        """Where it is, for people; without any secret."""
        return self.target if self.project is None else f"{self.target} of {self.project}"

    @property
    def odd_values_at(self) -> str:
        return (
            f"They were sent to {self.target_name} in _sdc_odd_values, a property of each record."
        )

    def left_by_mode(self, before: TableMode, now: TableMode) -> str | None:
        if "append" not in (before, now):
            return "it depends on the target what becomes of the rows that are there"
        return (
            "the target keeps what is there, perhaps with a key that the new rows don't meet: "
            "rename or drop its table before"
        )

    @field_validator("stream")
    @classmethod
    def _names_the_table(cls, template: str) -> str:
        try:
            fields = {name for _, name, _, _ in string.Formatter().parse(template) if name}
            template.format(schema="a", table="b")
        except (ValueError, LookupError, AttributeError):
            fields = set()
        if "table" not in fields or not fields <= _PLACES:
            raise ValueError("must hold {table}, may hold {schema}, and nothing else in braces")
        return template

    @model_validator(mode="after")
    def _belongs_together(self) -> SingerDestinationConfig:
        if self.environment is not None and self.project is None:
            raise ValueError("environment is Meltano's: it needs project, too")
        if self.project is not None and "/" in self.target:
            raise ValueError("with project, target is the name of a loader, not a path")
        return self


def plain(setting: Any) -> Any:
    """A setting as the target reads it."""
    return setting.get_secret_value() if isinstance(setting, SecretStr) else setting
