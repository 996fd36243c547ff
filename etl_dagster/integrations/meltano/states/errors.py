"""What can go wrong with stored state, by what its user would do about it."""

from __future__ import annotations

from etl_dagster.errors import StoreError


class StateStorageError(StoreError):
    """The database that holds the state refused or failed."""

    solution = "Read the server's message; `etl-dagster state list` tries the same connection."


class StateUriError(StateStorageError):
    """The URI or a setting can't be understood. The message never repeats it: passwords."""

    solution = (
        "Write postgres://user:password@host:port/database/schema, with @ : / # ? % in a user or "
        "password percent-encoded; or give the parts as state_backend.postgres.* settings."
    )


class StateStorageUnreachable(StateStorageError):
    """No connection, or it broke and could not be made again for some seconds."""

    solution = "Check host and port in state_backend.uri, and that the server is up."
    retryable = True


class StateStorageRefused(StateStorageError):
    """The server is up and refuses the login: user, password, database or pg_hba.conf."""

    solution = (
        "Check user, password and database in state_backend.uri (the password may come from "
        "MELTANO_STATE_BACKEND_POSTGRES_PASSWORD or ~/.pgpass), and the server's pg_hba.conf."
    )


class StateStorageForbidden(StateStorageError):
    """Connected, but the role may not do this, or no role may: the server is read only."""


class StateTablesMissing(StateStorageError):
    """The schema or a table is missing, and cannot or must not be created."""


class StateSchemaMissing(StateTablesMissing):
    """The schema is missing. It is not created: a mistyped name would look like empty state."""


class StateCorrupt(StateStorageError):
    """What is stored for an ID isn't a JSON object. It is left as it is."""

    def __init__(self, state_id: str, half: str, what: str) -> None:
        super().__init__(
            f"the {half} state stored for {state_id!r} {what}",
            solution=f"`etl-dagster state history {state_id!r}` shows earlier versions and `state "
            "restore` brings one back; or overwrite it with `meltano state set`.",
        )
        self.state_id = state_id


class StateNotStorable(StateStorageError):
    """A value or an ID that JSON or Postgres cannot represent. Nothing was written."""

    solution = "Correct the state; what was stored before is unchanged."


class StateChanged(StateStorageError):
    """Another process wrote the state meanwhile. Nothing was written."""

    solution = "Read the state again and repeat the change."
    retryable = True


class StateLocked(StateStorageError):
    """Another process holds the lock or run lease of this state ID."""

    solution = (
        "Wait for it to end. If that process is gone, its lock ends by itself within the lease."
    )
    retryable = True

    def __init__(self, state_id: str, reason: str) -> None:
        super().__init__(reason)
        self.state_id = state_id


class StateLockLost(StateStorageError):
    """Our lock expired while we held it, and another process took it. Nothing was written."""

    solution = (
        "The process stalled, or had no connection, for longer than the lease: run it again. "
        "Raise state_backend.lock_timeout_seconds if that is normal here."
    )
    retryable = True


class StateVersionMissing(StateStorageError):
    """The history has no such version of this state."""

    solution = "`etl-dagster state history STATE_ID` lists the versions that are kept."
