"""Which Postgres is replicated, and how it is reached."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from etl_dagster.config.section import ByteCount, Section
from etl_dagster.errors import ConfigError

_CONNECT_TIMEOUT = {"connect_timeout": "10"}
#: libpq keeps timeouts as 32-bit integers.
_LONGEST_TIMEOUT_MS = 2**31 - 1
_KEEPALIVE = {"keepalives_idle": "30", "keepalives_interval": "10", "keepalives_count": "3"}

#: libpq's parameters that say where a server is, and which one of several to use.
_PLACE = ("host", "hostaddr", "port", "service", "target_session_attrs", "load_balance_hosts")


def _off_in_yaml(value: object) -> object:
    """In YAML, off without quotes is False."""
    return "off" if value is False else value


class SourceConfig(Section):
    """The Postgres that is replicated: a DSN, or its parts; parts win over the DSN."""

    publication: str = Field(description="The publication whose tables are replicated.")
    dsn: SecretStr | None = Field(
        None, description="A libpq URI or key/value string; may hold the password."
    )
    host: str | None = Field(None, description="A name, an address, or a socket's folder.")
    port: int | None = Field(None, ge=1, le=65535, description="By default 5432.")
    user: str | None = Field(None, description="Needs REPLICATION, and SELECT on the tables.")
    password: SecretStr | None = Field(None, description="Better from the environment.")
    database: str | None = Field(None, description="Where the publication is.")
    sslmode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] | None = (
        Field(None, description="How much TLS is asked for; libpq's default is `prefer`.")
    )
    sslrootcert: str | None = Field(None, description="File of the authorities to trust.")
    sslcert: str | None = Field(None, description="File of the client's certificate.")
    sslkey: str | None = Field(None, description="File of the client's private key.")
    connect_timeout_s: int | None = Field(
        None, ge=1, description="Seconds to wait for a connection; 10 by default."
    )
    keepalive_idle_s: int | None = Field(
        None,
        ge=1,
        description="A connection that is silent for this long is probed; 30 by default.",
    )
    keepalive_interval_s: int | None = Field(
        None, ge=1, description="Seconds between probes; 10 by default."
    )
    keepalive_count: int | None = Field(
        None,
        ge=1,
        description="After this many probes without an answer the connection is given up, and so "
        "it is if sent data isn't acknowledged for as long; 3 by default.",
    )
    receiver_timeout_s: float = Field(
        60.0,
        ge=0,
        allow_inf_nan=False,
        description="A replication stream that brings nothing for half of this time is asked for a "
        "keepalive, and reconnects if nothing comes in the other half, like Postgres' "
        "wal_receiver_timeout; 0: never.",
    )
    streaming: Annotated[Literal["auto", "off"], BeforeValidator(_off_in_yaml)] = Field(
        "auto",
        description="Whether transactions that outgrow the server's logical_decoding_work_mem are "
        "read while they are in progress (from Postgres 14 on), or once they have committed.",
    )
    failover: bool = Field(
        False,
        description="Whether standbys keep the pipeline's slot, too, so that it survives a "
        "promotion; PostgreSQL 17 or later.",
    )
    standby: bool = Field(
        False,
        description="Whether the source may be a standby, which is read and never written to; "
        "PostgreSQL 16 or later.",
    )
    primary_dsn: SecretStr | None = Field(
        None,
        description="The primary of that standby, for heartbeats and so that new slots don't wait "
        "for its activity; a libpq URI or key/value string. Parameters that it leaves out, such as "
        "user and password, are those of the standby.",
    )
    max_retained_wal: ByteCount = Field(
        1024**3,
        ge=1_000_000,
        description="`status`, `doctor`, the log and the Dagster check warn if a slot makes the "
        "source keep more WAL than this; if max_slot_wal_keep_size is not larger, from half of "
        "that.",
    )
    heartbeat_s: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds between heartbeats: small messages in the WAL, without a table, by "
        "which an idle database releases WAL and the end-to-end latency is measured; 0: none.",
    )

    @field_validator("publication")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a publication")
        return value

    @model_validator(mode="after")
    def _reachable(self) -> SourceConfig:
        if self.dsn is None and self.database is None:
            raise ValueError("needs either dsn, or at least database (and host, user, ...)")
        return self

    @model_validator(mode="after")
    def _standby_is_one(self) -> SourceConfig:
        if self.primary_dsn is not None and not self.standby:
            raise ValueError("primary_dsn is for a source that is a standby: set standby: true")
        return self

    @property
    def primary(self) -> SourceConfig | None:
        """How the primary of a standby is reached; None if `primary_dsn` isn't given.

        Raises:
            ConfigError: one of the DSNs can't be read.
        """
        from etl_dagster.pg.dsn import Dsn, DsnError

        if self.primary_dsn is None:
            return None
        own = Dsn.parse(self.conninfo()).parameters
        kept = {name: value for name, value in own.items() if name not in _PLACE}
        try:
            given = Dsn.parse(self.primary_dsn.get_secret_value())
        except DsnError as error:
            raise ConfigError([f"source.primary_dsn: {error}"], origin="source") from None
        return SourceConfig(
            publication=self.publication,
            dsn=SecretStr(Dsn({**kept, **given.parameters}).conninfo()),
        )

    def conninfo(self, **extra: str | int | None) -> str:
        """A libpq connection string, password included; `extra` are further libpq parameters.

        Raises:
            ConfigError: the DSN can't be read.
        """
        from etl_dagster.pg.dsn import Dsn, DsnError

        parts: dict[str, str | int | None] = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password.get_secret_value() if self.password else None,
            "dbname": self.database,
            "sslmode": self.sslmode,
            "sslrootcert": self.sslrootcert,
            "sslcert": self.sslcert,
            "sslkey": self.sslkey,
            "connect_timeout": self.connect_timeout_s,
            "keepalives_idle": self.keepalive_idle_s,
            "keepalives_interval": self.keepalive_interval_s,
            "keepalives_count": self.keepalive_count,
        } | extra
        given = {key: str(value) for key, value in parts.items() if value is not None}
        place = "source.dsn"
        try:
            dsn = Dsn.parse(self.dsn.get_secret_value() if self.dsn else "")
            place = "source"
            parameters = {**_CONNECT_TIMEOUT, **dsn.parameters, **given}
            if any(name in given for name in _KEEPALIVE):
                parameters = _with_timeout({**_KEEPALIVE, **parameters})
            return Dsn.of(parameters).conninfo()
        except DsnError as error:
            hint = "; or use source.user and source.password" if "%" in str(error) else ""
            raise ConfigError([f"{place}: {error}{hint}"], origin="source") from None


def _with_timeout(parameters: dict[str, str]) -> dict[str, str]:
    """Adds `tcp_user_timeout`: sent data waits as long for an acknowledgement as the probes do.

    On Linux it limits the probes as well.
    """
    values = [parameters[name] for name in _KEEPALIVE]
    if not all(re.fullmatch("[0-9]{1,10}", value) for value in values):
        return parameters  # libpq reports what is wrong
    idle_s, interval_s, count = map(int, values)
    timeout_ms = min((idle_s + interval_s * count) * 1000, _LONGEST_TIMEOUT_MS)
    return {"tcp_user_timeout": str(timeout_ms), **parameters}
