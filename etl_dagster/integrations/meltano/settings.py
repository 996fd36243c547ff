"""Meltano's settings for the state backend, found by entry points.

Every `meltano` command loads this module, whatever backend it uses: it imports nothing else.

The settings exist twice, because Meltano hands a backend only those whose second part is the scheme
of its URI: ``state_backend.postgres.host`` for ``postgres://``, ``state_backend.postgresql.host``
for ``postgresql://``. Each is an alias of the other, so either may be set with either scheme.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from meltano.core.setting_definition import SettingDefinition, SettingKind

_STRING, _INTEGER, _BOOLEAN = SettingKind.STRING, SettingKind.INTEGER, SettingKind.BOOLEAN
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

#: Name, kind, label, description. A setting without a value is taken from the URI, else from libpq.
_SETTINGS: tuple[tuple[str, SettingKind, str, str], ...] = (
    ("host", _STRING, "Host", "Server, or folder of its Unix socket; several with commas"),
    ("port", _INTEGER, "Port", "Port of the server; 5432 if not given"),
    ("user", _STRING, "User", "Role to connect as"),
    ("password", SettingKind.PASSWORD, "Password", "Password of the role; or use ~/.pgpass"),
    ("database", _STRING, "Database", "Database that holds the state"),
    ("schema", _STRING, "Schema", "Schema of the tables; public if not given"),
    ("sslmode", SettingKind.OPTIONS, "SSL mode", "libpq's sslmode; prefer if not given"),
    ("sslrootcert", _STRING, "Root certificate", "File with the authorities to trust (CA)"),
    ("sslcert", _STRING, "Client certificate", "File with the client's certificate"),
    ("sslkey", _STRING, "Client key", "File with the client certificate's key"),
    ("connect_timeout", _INTEGER, "Connect timeout", "Seconds for each host; 10 if not given"),
    ("application_name", _STRING, "Application name", "Shown in pg_stat_activity"),
    ("options", _STRING, "Options", "Such as -c statement_timeout=5s; most poolers refuse them"),
    ("state_table", _STRING, "State table", "meltano_state if not given"),
    ("locks_table", _STRING, "Locks table", "meltano_state_locks if not given"),
    ("create_tables", _BOOLEAN, "Create tables", "Whether to create missing tables; true"),
    ("lock_wait_seconds", _INTEGER, "Lock wait", "Seconds to wait for a lock in use; 30"),
    ("history_versions", _INTEGER, "History", "Versions to keep of each state; 100. 0 keeps none"),
    (
        "history_days",
        _INTEGER,
        "History age",
        "Days to keep the last version of each older run; 90",
    ),
)


def _definitions(namespace: str, other: str) -> SimpleNamespace:
    found = SimpleNamespace()
    for name, kind, label, description in _SETTINGS:
        more: dict[str, Any] = {}
        if kind is SettingKind.OPTIONS:
            more["options"] = [{"label": mode, "value": mode} for mode in _SSLMODES]
        if kind is SettingKind.PASSWORD:
            more["sensitive"] = True
        definition = SettingDefinition(
            name=f"state_backend.{namespace}.{name}",
            aliases=[f"state_backend.{other}.{name}"],
            label=label,
            description=description,
            kind=kind,
            env_specific=True,
            **more,
        )
        setattr(found, name, definition)
    return found


#: The entry points name attributes of these: ``settings:POSTGRES.host``.
POSTGRES = _definitions("postgres", "postgresql")
POSTGRESQL = _definitions("postgresql", "postgres")
