"""The Postgres that is replicated, as a resource."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
from typing import TYPE_CHECKING

from etl_dagster.config import SourceConfig
from etl_dagster.integrations.dagster.resources.sections import SectionResource, of_model

if TYPE_CHECKING:
    # What type checkers and editors see of the fields that are made from the model; a test
    # compares both.

    class _SourceFields(SectionResource):
        publication: str
        dsn: str | None = None
        host: str | None = None
        port: int | None = None
        user: str | None = None
        password: str | None = None
        database: str | None = None
        sslmode: str | None = None
        sslrootcert: str | None = None
        sslcert: str | None = None
        sslkey: str | None = None
        connect_timeout_s: int | None = None
        keepalive_idle_s: int | None = None
        keepalive_interval_s: int | None = None
        keepalive_count: int | None = None
        receiver_timeout_s: float = 60.0
        streaming: str = "auto"
        failover: bool = False
        standby: bool = False
        primary_dsn: str | None = None
        max_retained_wal: int = 1024**3
        heartbeat_s: float = 30.0

else:
    _SourceFields = of_model(SourceConfig, None, "source")


class PostgresSourceResource(_SourceFields):
    """The Postgres that is replicated: a DSN, or its parts, which override the DSN.

    Give secrets as ``EnvVar("NAME")``: they are read when used, and hidden in the UI.
    """
