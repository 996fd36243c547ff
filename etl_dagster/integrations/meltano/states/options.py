"""Options of a storage of states."""

from __future__ import annotations

from dataclasses import dataclass, fields

from etl_dagster.integrations.meltano.states.errors import StateUriError


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """How a storage behaves; the names are those of Meltano's settings."""

    #: A lock that was not renewed for this long has expired; the server ends a transaction under it
    #: that is idle for as long.
    lock_timeout_seconds: float = 10.0
    #: The longest pause between two attempts; a release usually ends the pause at once.
    lock_retry_seconds: float = 1.0
    #: How long to wait for an owner that is alive. None: 30 s, or three times the lock timeout if
    #: that is more.
    lock_wait_seconds: float | None = None
    #: So many versions of each state are kept; 0 keeps no history at all.
    history_versions: int = 100
    #: Of older versions, the last one of each run is kept for this many days.
    history_days: int = 90
    #: Whether missing tables are created.
    create_tables: bool = True
    #: Whether a missing schema is created.
    create_schema: bool = False

    def __post_init__(self) -> None:
        for name in ("lock_timeout_seconds", "lock_retry_seconds"):
            if not getattr(self, name) > 0:
                raise StateUriError(
                    f"{name} must be more than 0", solution=f"Correct state_backend.{name}."
                )
        for name in ("history_versions", "history_days"):
            if getattr(self, name) < 0:
                raise StateUriError(
                    f"{name} must not be negative",
                    solution=f"Correct state_backend.postgres.{name}.",
                )

    @property
    def lease_s(self) -> float:
        return max(1.0, self.lock_timeout_seconds)

    @property
    def wait_s(self) -> float:
        if self.lock_wait_seconds is not None:
            return self.lock_wait_seconds
        return max(30.0, 3 * self.lock_timeout_seconds)


#: Those that are settings of Meltano's.
OPTIONS = tuple(field.name for field in fields(StorageOptions) if field.name != "create_schema")
