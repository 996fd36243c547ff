"""Every table's position as Meltano state, and what people's changes to it mean."""

from etl_dagster.integrations.meltano.positions.mirror import Mirror, mirrored_positions

__all__ = ["Mirror", "mirrored_positions"]
