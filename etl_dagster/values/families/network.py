"""Addresses of hosts and networks."""

from __future__ import annotations

from typing import Final

from etl_dagster.values.families.texts import printed

ROWS: Final = (
    printed(869, "inet", "10.0.0.1", "10.0.0.0/8", "::1"),
    printed(650, "cidr", "10.0.0.0/8", "::/0"),
    printed(829, "macaddr", "08:00:2b:01:02:03"),
    printed(774, "macaddr8", "08:00:2b:01:02:03:04:05"),
)
