"""Where a running pipeline exports its metrics."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from etl_dagster.config.section import Section

_PORT = re.compile(r"[0-9]{1,5}")


class MetricsConfig(Section):
    """Metrics for Prometheus and OpenTelemetry; without a setting, nothing is exported."""

    listen: str | None = Field(
        None,
        description="`HOST:PORT` on which Prometheus finds `/metrics`, such as `127.0.0.1:9464`. "
        "Anyone who can reach it sees table names and numbers. Needs `etl-dagster[prometheus]`.",
    )
    opentelemetry: bool = Field(
        False,
        description="Export by OTLP over HTTP, to where OTEL_EXPORTER_OTLP_ENDPOINT says. Needs "
        "`etl-dagster[opentelemetry]`.",
    )
    max_tables: int = Field(
        500,
        ge=0,
        description="How many tables, by name, have metrics of their own; 0: none.",
    )

    @field_validator("listen")
    @classmethod
    def _is_address(cls, listen: str | None) -> str | None:
        if listen is not None:
            host, colon, port = listen.rpartition(":")
            if not (colon and host and _PORT.fullmatch(port) and int(port) < 65536):
                raise ValueError("must be HOST:PORT, such as 127.0.0.1:9464")
        return listen

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `listen`."""
        assert self.listen is not None
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)
