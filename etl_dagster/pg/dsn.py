"""Where a Postgres is, as libpq reads it: parsed, checked, and shown without secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_AUTHORITY_AND_PATH: Final = re.compile(
    r"\Apostgres(?:ql)?://(?P<authority>[^/?]*)(?P<path>[^?]*)", re.DOTALL
)
_NUMBERS: Final = re.compile(r"\d*(,\d*)*")
#: Source: PostgreSQL documentation, "Parameter Key Words".
SSLMODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SECRETS: Final = ("password", "sslpassword")
#: libpq's words for what it can't read; it quotes the piece, which may be one of a password.
_LIBPQ_WORDS: Final = (
    "invalid percent-encoded token",
    "invalid URI query parameter",
    "forbidden value",
)


class DsnError(ValueError):
    """A DSN that can't be used. Names what is wrong with it, never a piece of it."""

    def __init__(self, what: str, *, parameter: str | None = None) -> None:
        super().__init__(what)
        #: libpq's name of the parameter with the mistake, where it is one.
        self.parameter = parameter


def tcp_settings(noticed_after_s: int) -> dict[str, str]:
    """libpq's parameters by which a peer that vanished is noticed.

    Args:
        noticed_after_s: seconds until then, whether this side waits or sends.
    """
    return {
        "keepalives_idle": str(noticed_after_s // 2),
        "keepalives_interval": str(noticed_after_s // 6),
        "keepalives_count": "3",
        "tcp_user_timeout": str(noticed_after_s * 1000),
    }


def check_uri(text: str) -> None:
    """Refuse a URI that libpq would take apart at the wrong place, in the middle of a password.

    libpq would then name a piece of the password as a host or port in its messages.

    Raises:
        DsnError: it has an @ or a / where there can be none.
    """
    match = _AUTHORITY_AND_PATH.match(text)
    if match is None:
        return
    if match["authority"].count("@") > 1:
        raise DsnError(
            "more than one @ before the host; an @ in a user or password must be percent-encoded "
            "as %40"
        )
    if "@" in match["path"]:
        raise DsnError(
            "an @ after the host; a / in a user or password must be percent-encoded as %2F, and "
            "an @ in a database's name as %40"
        )


@dataclass(frozen=True, slots=True)
class Dsn:
    """libpq's parameters of a server; only `conninfo` and `parameters` show the secrets."""

    parameters: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Dsn:
        """From a libpq URI or key/value string.

        Raises:
            DsnError: libpq can't read it, or reads it otherwise than it was meant.
        """
        check_uri(text)
        try:
            given = conninfo_to_dict(text)
        except (psycopg.Error, ValueError) as error:
            words = str(error)
            kind = next((kind for kind in _LIBPQ_WORDS if kind in words), None)
        else:
            return cls.of({name: str(value) for name, value in given.items()})
        # Outside of the handler: libpq's text doesn't follow as a cause.
        raise DsnError(f"not a libpq URI or key/value string{f': {kind}' if kind else ''}")

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Dsn:
        """From libpq's parameters.

        Raises:
            DsnError: one of them can't be right.
        """
        for name, value in parameters.items():
            if "\0" in value:
                raise DsnError(f"{name} has a NUL character", parameter=name)
        for name in ("port", "connect_timeout"):
            # The port may be a piece of a password that should have been percent-encoded.
            if not _NUMBERS.fullmatch(parameters.get(name, "")):
                raise DsnError(f"the {name} is not a number", parameter=name)
        sslmode = parameters.get("sslmode") or SSLMODES[0]
        if sslmode not in SSLMODES:
            raise DsnError(
                f"sslmode {sslmode!r} is not one of {', '.join(SSLMODES)}", parameter="sslmode"
            )
        return cls(dict(parameters))

    def conninfo(self, **more: str | int) -> str:
        """A connection string for libpq, with the secrets; `more` wins."""
        return make_conninfo("", **{**self.parameters, **more})

    def with_defaults(self, **defaults: str) -> Dsn:
        """The same, with these parameters where it doesn't give its own."""
        return Dsn({**defaults, **self.parameters})

    def get(self, name: str) -> str:
        """One of libpq's parameters; empty where it isn't given."""
        return self.parameters.get(name, "")

    @property
    def shown(self) -> str:
        """For people: ``host:port/database``."""
        host = self.get("host") or self.get("service") or "local server"
        port = self.get("port")
        return f"{host}{f':{port}' if port else ''}/{self.get('dbname')}"

    @property
    def uri(self) -> str:
        """For people: a URI without password or parameters."""
        user, host, port = (self.get(name) for name in ("user", "host", "port"))
        authority = quote(host, safe="" if host.startswith("/") else ",:[]")
        if user:
            authority = f"{quote(user, safe='')}@{authority}"
        if port:
            authority = f"{authority}:{port}"
        return f"postgresql://{authority}/{quote(self.get('dbname') or user, safe='')}"

    def redact(self, text: str) -> str:
        """The text without the secrets, should libpq or the server repeat one."""
        for secret in filter(None, map(self.get, _SECRETS)):
            pattern = re.escape(secret)
            if len(secret) <= 3:  # a part of many words; where it is repeated, it stands alone
                pattern = rf"(?<!\w){pattern}(?!\w)"
            text = re.sub(pattern, "***", text)
        return text
