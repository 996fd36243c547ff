"""From which values on checks warn, and from which on they fail."""

# Dagster reads the annotations, so they must not be strings.
from dataclasses import dataclass

from dagster import Resolvable


@dataclass(frozen=True, kw_only=True)
class CheckThresholds(Resolvable):
    """The bounds of a pipeline's checks: past ``_warn`` they warn, past ``_error`` they fail.

    In the YAML of a component it is the block ``checks.thresholds``.

    Args:
        lag_warn_s: how long after their commit changes become durable, for
            ``in_step_with_source`` and ``replication_lag``.
        lag_error_s: the same.
        wal_warn_bytes: how much WAL the source keeps for the pipeline's slot, for ``wal_retained``;
            by default ``source.max_retained_wal``, or half of the server's own limit if that is
            less.
        wal_error_bytes: the same; by default twice as much, and at most nine tenths of the
            server's limit, past which the slot is lost.
        slot_behind_warn_bytes: how far the slot is behind what is durable, for
            ``state_matches_slot``.
        slot_behind_error_bytes: the same; with None, the check never fails for that.
        rows_warn: by how many rows the counts of both sides differ, for ``row_count_match``.
        rows_error: the same.
        odd_values_error: how many values of a table its columns' types can't hold, for
            ``values_held``, which warns of a single one; with None, it never fails for that.
    """

    lag_warn_s: float = 300.0
    lag_error_s: float = 3600.0
    wal_warn_bytes: int | None = None
    wal_error_bytes: int | None = None
    slot_behind_warn_bytes: int = 64 * 1024**2
    slot_behind_error_bytes: int | None = None
    rows_warn: int = 0
    rows_error: int = 0
    odd_values_error: int | None = None

    def __post_init__(self) -> None:
        pairs = (
            ("lag_warn_s", self.lag_warn_s, "lag_error_s", self.lag_error_s),
            ("wal_warn_bytes", self.wal_warn_bytes, "wal_error_bytes", self.wal_error_bytes),
            (
                "slot_behind_warn_bytes",
                self.slot_behind_warn_bytes,
                "slot_behind_error_bytes",
                self.slot_behind_error_bytes,
            ),
            ("rows_warn", self.rows_warn, "rows_error", self.rows_error),
        )
        for warn_name, warn, error_name, error in pairs:
            if warn is not None and error is not None and warn > error:
                raise ValueError(f"{warn_name} ({warn}) is more than {error_name} ({error})")


#: For pipelines without thresholds of their own.
DEFAULT_THRESHOLDS = CheckThresholds()
