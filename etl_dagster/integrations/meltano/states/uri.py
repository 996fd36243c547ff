"""Where state lives: reads ``postgres://user:password@host:port/database/schema``.

Every other URI that libpq reads works as well: query parameters, several hosts, unix sockets,
services, no password (then libpq looks into PGPASSWORD, ~/.pgpass or the client certificate).

Precedence, highest first: a setting of its own (``state_backend.postgres.host``); the URI; libpq's
environment (``PGHOST``) and service file; libpq's defaults, save that the host is localhost, where
libpq would look for a unix socket in a folder that depends on how it was built. An empty setting
counts as none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict

from etl_dagster.integrations.meltano.states.errors import StateUriError

SCHEMES = ("postgres", "postgresql")
DEFAULT_SCHEMA = "public"
#: The settings that say where and how to connect; each wins over the URI.
SETTINGS = (
    "host",
    "port",
    "user",
    "password",
    "database",
    "schema",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "connect_timeout",
    "application_name",
    "options",
)
#: A connection that a firewall forgot is noticed within half a minute. The URI may say otherwise.
_DEFAULTS: dict[str, str] = {
    "application_name": "meltano state",
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
#: What a URI doesn't decide.
_FIXED: dict[str, str] = {"client_encoding": "UTF8"}
#: Our names for libpq's, where they differ.
_LIBPQ_NAMES = {"database": "dbname"}
_URI = re.compile(
    r"\A(?P<scheme>[A-Za-z][\w+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?\Z",
    re.DOTALL,
)
_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class StateLocation:
    """A database and a schema in it; its repr shows neither user nor password."""

    #: libpq's parameters, the password among them.
    parameters: Mapping[str, str] = field(repr=False)
    schema: str = DEFAULT_SCHEMA

    @property
    def shown(self) -> str:
        """For people: ``host:port/database, schema``."""
        host = self.parameters.get("host") or self.parameters.get("service") or "local server"
        port = self.parameters.get("port")
        database = self.parameters.get("dbname") or ""
        return f"{host}{f':{port}' if port else ''}/{database}, schema {self.schema}"


def locate(uri: str = "", **settings: str | int | None) -> StateLocation:
    """Put a URI and single settings together.

    Args:
        uri: may be empty, or have nothing but the scheme (``postgres://``).
        settings: those of `SETTINGS`; connect_timeout is in seconds.

    Raises:
        StateUriError: naming what is wrong, never the text itself.
    """
    parameters, schema = _parse(uri) if uri else ({}, None)
    given = {
        _LIBPQ_NAMES.get(name, name): str(value)
        for name, value in settings.items()
        if value is not None and value != ""
    }
    schema = given.pop("schema", None) or schema or DEFAULT_SCHEMA
    if "\0" in schema:
        raise StateUriError("the schema's name has a NUL character")
    _check(given)
    if "host" in given and "port" not in given and "," in parameters.get("port", ""):
        del parameters["port"]  # they were those of the hosts that are replaced
    if "host" in given:
        parameters.pop("hostaddr", None)
    parameters |= given
    _check_sslmode(parameters.get("sslmode"))
    elsewhere = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
    if not {"host", "hostaddr", "service"} & set(parameters) and not any(map(os.getenv, elsewhere)):
        parameters["host"] = "localhost"
    hosts = parameters.get("host", "")
    if "," in hosts:
        # With several servers the one that takes writes is meant.
        parameters.setdefault("target_session_attrs", "read-write")
    return StateLocation({**_DEFAULTS, **parameters, **_FIXED}, schema)


def locate_dsn(dsn: str, schema: str) -> StateLocation:
    """From a libpq DSN, URI or key/value, as the rest of etl-dagster has them.

    Raises:
        StateUriError: libpq can't read it.
    """
    try:
        parsed = conninfo_to_dict(dsn)
    except psycopg.Error as error:
        raise StateUriError(f"libpq can't read the DSN: {_kind(error)}") from None
    given = {name: str(value) for name, value in parsed.items()}
    return StateLocation({**_DEFAULTS, **given, **_FIXED}, schema)


def _parse(uri: str) -> tuple[dict[str, str], str | None]:
    match = _URI.match(uri.strip())
    if match is None:
        hint = " (a # must be written %23)" if "#" in uri else ""
        raise StateUriError(f"state_backend.uri is not a URI{hint}")
    if match["scheme"].lower() not in SCHEMES:
        raise StateUriError(
            f"state_backend.uri has the scheme {match['scheme']!r}, not postgres or postgresql"
        )
    if match["authority"].count("@") > 1:
        raise StateUriError(
            "state_backend.uri has more than one @ before the host; those of user and password "
            "must be written %40"
        )
    if "@" in match["path"]:
        raise StateUriError(
            "state_backend.uri has an @ behind the host; a / in a user or password must be written "
            "%2F, an @ in a database's name %40"
        )
    database, *rest = match["path"].removeprefix("/").removesuffix("/").split("/")
    if len(rest) > 1:
        raise StateUriError(
            "state_backend.uri has more than /database/schema behind the host; a / in a user or "
            "password must be written %2F"
        )
    schema = unquote(rest[0]) if rest else None
    query, schema_parameter = _without_schema(match["query"] or "")
    libpq_uri = f"postgresql://{match['authority']}/{database}{query}"
    try:
        parsed = conninfo_to_dict(libpq_uri)
    except psycopg.Error as error:
        raise StateUriError(f"libpq can't read state_backend.uri: {_kind(error)}") from None
    return {name: str(value) for name, value in parsed.items()}, schema or schema_parameter


def _without_schema(query: str) -> tuple[str, str | None]:
    """libpq knows no parameter ``schema``; we take it for the second part of the path."""
    schema = None
    kept = []
    for part in query.removeprefix("?").split("&"):
        name, _, value = part.partition("=")
        if name == "schema":
            schema = unquote(value) or None
        elif part:
            kept.append(part)
    return f"?{'&'.join(kept)}" if kept else "", schema


def _kind(error: psycopg.Error) -> str:
    """Only libpq's own words: it quotes what it can't read, which may be a password."""
    words = re.sub(r'"[^"]*"', '"..."', str(error).strip())
    known = ("invalid percent-encoded token", "invalid URI query parameter", "forbidden value")
    return next((kind for kind in known if kind in words), "one of its parts is malformed")


def _check(given: Mapping[str, str]) -> None:
    for name, value in given.items():
        if "\0" in value:
            raise StateUriError(f"the setting {name} has a NUL character")
    for name in ("port", "connect_timeout"):
        if not re.fullmatch(r"\d+(,\d+)*", given.get(name, "0")):
            raise StateUriError(
                f"the setting {name} is not a number",
                solution=f"Correct state_backend.postgres.{name}.",
            )


def _check_sslmode(sslmode: str | None) -> None:
    if sslmode is not None and sslmode not in _SSLMODES:
        raise StateUriError(
            f"sslmode {sslmode!r} is none of {', '.join(_SSLMODES)}",
            solution="Correct state_backend.postgres.sslmode, or sslmode in state_backend.uri.",
        )
