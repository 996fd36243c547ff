"""The settings of a Postgres destination."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, SecretStr, field_validator

from etl_dagster.config import DestinationConfig


class PostgresDestinationConfig(DestinationConfig):
    """A database of another Postgres, or another database of the source's server."""

    reads_text: ClassVar[bool] = True

    type: Literal["postgres"]
    dsn: SecretStr = Field(description="A libpq URI or key/value string; may hold the password.")
    user_types: Literal["text", "create"] = Field(
        "text",
        description="What enums, domains and composites become: `text`: text and base types; "
        "`create`: the same types, made at the destination.",
    )
    changelog: bool = Field(False, description="Also keep the position of every change.")

    @field_validator("dsn")
    @classmethod
    def _readable(cls, value: SecretStr) -> SecretStr:
        from etl_dagster.pg.dsn import Dsn, DsnError

        try:
            Dsn.parse(value.get_secret_value())
        except DsnError as error:
            # Outside of libpq's error, which may hold a piece of a password.
            raise ValueError(str(error)) from None
        return value

    @property
    def makes_types(self) -> bool:
        return self.user_types == "create"

    @property
    def place(self) -> str:
        from etl_dagster.pg.dsn import Dsn

        return Dsn.parse(self.dsn.get_secret_value()).uri

    @property
    def odd_values_at(self) -> str:
        return f"They are in _etl.odd_values of {self.place}."

    def refusal(self, choice: str) -> str | None:
        # Both of them say what it does: each type is its own there.
        if choice in ("text", "native"):
            return None
        return "a Postgres has the type itself, and takes its values as Postgres prints them"
