"""What a look at the source found, as one line of a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import psycopg

from etl_dagster.errors import EtlError

Connection: TypeAlias = psycopg.Connection[Any]
Level: TypeAlias = Literal["ok", "warning", "error"]
#: Of the connections that look.
APPLICATION = "etl_dagster preflight"
#: So many names are listed; then a count.
LISTED = 8


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a report."""

    name: str
    level: Level
    message: str
    #: What to do; empty when there is nothing to do.
    solution: str = ""
    #: What a pipeline that starts regardless would fail with.
    failure: EtlError | None = field(default=None, repr=False, compare=False)

    @classmethod
    def ok(cls, name: str, message: str) -> Check:
        return cls(name, "ok", message)

    @classmethod
    def warning(cls, name: str, message: str, solution: str) -> Check:
        return cls(name, "warning", message, solution)

    @classmethod
    def error(cls, name: str, failure: EtlError) -> Check:
        return cls(name, "error", failure.reason, failure.solution, failure)

    def to_json(self) -> dict[str, str]:
        return {
            "name": self.name,
            "level": self.level,
            "message": self.message,
            "solution": self.solution,
        }
