"""Where state lives: reads ``postgres://user:password@host:port/database/schema``.

Every other URI that libpq reads works as well: query parameters, several hosts, unix sockets,
services, no password (then libpq looks into PGPASSWORD, ~/.pgpass or the client certificate).

Precedence, highest first: a setting of its own (``state_backend.postgres.host``); the URI; libpq's
environment (``PGHOST``) and service file; libpq's defaults, except for the host: it is localhost,
where libpq would look for a Unix socket in a folder that depends on how it was built. An empty
setting counts as none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from etl_dagster.integrations.meltano.states.errors import StateUriError
from etl_dagster.pg.dsn import Dsn, DsnError, check_uri, tcp_settings

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
    **tcp_settings(30),
}
#: Parameters that neither the URI nor a setting changes.
_FIXED: dict[str, str] = {"client_encoding": "UTF8"}
#: Our names for libpq's, where they differ.
_LIBPQ_NAMES = {"database": "dbname"}
_OUR_NAMES = {theirs: ours for ours, theirs in _LIBPQ_NAMES.items()}
_URI = re.compile(
    r"\A(?P<scheme>[A-Za-z][\w+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?\Z",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class StateLocation:
    """A database and a schema in it; its repr shows neither user nor password."""

    #: libpq's parameters, the password among them.
    parameters: Mapping[str, str] = field(repr=False)
    schema: str = DEFAULT_SCHEMA

    @property
    def shown(self) -> str:
        """For people: ``host:port/database, schema``."""
        return f"{self.dsn.shown}, schema {self.schema}"

    @property
    def dsn(self) -> Dsn:
        return Dsn(self.parameters)


def locate(uri: str = "", **settings: str | int | None) -> StateLocation:
    """Combine a URI and separate settings.

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
    _checked(given, "the setting ")
    if "host" in given and "port" not in given and "," in parameters.get("port", ""):
        del parameters["port"]  # they belong to the hosts that are replaced
    if "host" in given:
        parameters.pop("hostaddr", None)
    parameters |= given
    elsewhere = ("PGHOST", "PGHOSTADDR", "PGSERVICE")
    if not {"host", "hostaddr", "service"} & set(parameters) and not any(map(os.getenv, elsewhere)):
        parameters["host"] = "localhost"
    hosts = parameters.get("host", "")
    if "," in hosts:
        # With several servers the one that takes writes is meant.
        parameters.setdefault("target_session_attrs", "read-write")
    return StateLocation({**_DEFAULTS, **_checked(parameters), **_FIXED}, schema)


def locate_dsn(dsn: str, schema: str) -> StateLocation:
    """From a DSN of libpq's, a URI or key/value, as in the rest of etl-dagster.

    Raises:
        StateUriError: libpq can't read it.
    """
    try:
        given = Dsn.parse(dsn).parameters
    except DsnError as error:
        raise StateUriError(f"the DSN: {error}", solution=_solution(error)) from None
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
    try:
        check_uri(f"postgresql://{match['authority']}{match['path']}")
    except DsnError as error:
        raise StateUriError(f"state_backend.uri has {error}") from None
    database, *rest = match["path"].removeprefix("/").removesuffix("/").split("/")
    if len(rest) > 1:
        raise StateUriError(
            "state_backend.uri has more than /database/schema after the host; a / in a user or "
            "password must be written %2F"
        )
    schema = unquote(rest[0]) if rest else None
    query, schema_parameter = _without_schema(match["query"] or "")
    libpq_uri = f"postgresql://{match['authority']}/{database}{query}"
    try:
        parsed = Dsn.parse(libpq_uri)
    except DsnError as error:
        raise StateUriError(f"state_backend.uri: {error}", solution=_solution(error)) from None
    return dict(parsed.parameters), schema or schema_parameter


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


def _checked(parameters: Mapping[str, str], what: str = "") -> Mapping[str, str]:
    try:
        return Dsn.of(parameters).parameters
    except DsnError as error:
        raise StateUriError(f"{what}{error}", solution=_solution(error)) from None


def _solution(error: DsnError) -> str | None:
    name = error.parameter
    if name is None:
        return None
    setting = f"state_backend.postgres.{_OUR_NAMES.get(name, name)}"
    return f"Correct {setting}, or {name} in state_backend.uri."
