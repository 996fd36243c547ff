"""The mirror of positions in Meltano's state."""

from __future__ import annotations

from pydantic import Field, SecretStr

from etl_dagster.config.section import Section


class MeltanoConfig(Section):
    """The mirror of every table's position as Meltano state."""

    enabled: bool = Field(True, description="Whether positions are mirrored.")
    state_backend: SecretStr | None = Field(
        None,
        description="A postgres:// URI as Meltano's state_backend.uri; by default the database and "
        "schema of the state store.",
    )
    interval_s: float = Field(
        5.0, gt=0, description="A position is written this often; changes of phase at once."
    )
