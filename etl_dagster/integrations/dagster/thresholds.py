"""From where on checks warn, and from where on they fail."""

# Dagster reads the annotations, so they must not be strings.
from dataclasses import dataclass

from dagster import Resolvable


@dataclass(frozen=True, kw_only=True)
class CheckThresholds(Resolvable):
    """The bounds of a pipeline's checks: past one they warn, past the other they fail.

    In the YAML of a component it is the block ``checks.thresholds``.

    Args:
        lag_warn_s: changes that become durable so long after their commit, for
            ``in_step_with_source`` and ``replication_lag``.
        lag_error_s: the same.
        wal_warn_bytes: WAL that the source keeps for the pipeline's slot, for ``wal_retained``; by
            default ``source.max_retained_wal``, or half of the server's own limit where that is
            less.
        wal_error_bytes: the same; by default twice as much, and at most nine tenths of the
            server's limit, past which the slot is lost.
        slot_behind_warn_bytes: how far the slot may be behind what is durable, for
            ``state_matches_slot``.
        slot_behind_error_bytes: the same; None: it never fails for that.
        rows_warn: by so many rows the counts of both sides may differ, for ``row_count_match``.
        rows_error: the same.
        odd_values_error: so many values of a table that their columns' types can't hold fail
            ``values_held``, which warns of any; None: it never fails for that.
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


#: Of pipelines for which nothing else is set.
DEFAULT_THRESHOLDS = CheckThresholds()
