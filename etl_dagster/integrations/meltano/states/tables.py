"""Names of the tables that hold states, as the statements use them."""

from __future__ import annotations

from dataclasses import dataclass

from psycopg import sql


@dataclass(frozen=True, slots=True)
class StateTables:
    """The names of the tables, all in one schema."""

    schema: str
    state: str = "meltano_state"
    locks: str = "meltano_state_locks"

    @property
    def history(self) -> str:
        return f"{self.state}_history"

    @property
    def migrations(self) -> str:
        return f"{self.state}_migrations"

    def identifiers(self) -> dict[str, sql.Identifier]:
        """For `SQL.format`: ``{state}``, ``{locks}``, ``{history}``, ``{migrations}``."""
        names = {
            "state": self.state,
            "locks": self.locks,
            "history": self.history,
            "migrations": self.migrations,
        }
        return {key: sql.Identifier(self.schema, name) for key, name in names.items()}
