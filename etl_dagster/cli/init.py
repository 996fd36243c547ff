"""`etl-dagster init`: a configuration to begin with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import click

from etl_dagster.cli.confirming import changes_something, is_wanted

_TEMPLATE = """\
# A pipeline of etl-dagster: one Postgres publication to one destination.
# `etl-dagster doctor` checks it, `etl-dagster run` runs it.
#
# ${{NAME}} is an environment variable, ${{NAME:-other}} has a default, $$ is a dollar sign.
# Any setting can be overridden from the environment: ETL_DAGSTER__SOURCE__PASSWORD=...

# Part of slot names and state IDs, so don't change it later, and have no two of one name on a
# Postgres server. Lower-case letters, digits and _.
pipeline: {pipeline}
# The first part of the state IDs: {environment}:{pipeline}-to-duckdb:schema.table
environment: {environment}

source:
  # The tables to replicate, chosen in Postgres:
  #   CREATE PUBLICATION {publication} FOR TABLE public.customers, public.orders;
  publication: {publication}
  # The user needs REPLICATION, SELECT on the tables, and CREATE on the database
  # for the state store (see below).
{source}
  # disable, allow, prefer, require, verify-ca or verify-full
  {sslmode}

# Where positions and table states are kept; without a dsn in the source database itself.
state_store:
  # dsn: postgresql://etl:${{STATE_PASSWORD}}@db.example.com/state
  schema: etl

destination:
  # duckdb, ducklake, dlt, http, postgres, singer, memory for trying out, or one that a package
  # brings; all but the type is different for each.
  type: duckdb
  # Relative to this file; its folder must exist.
  path: {path}
  memory_limit: 256MB

# In place of `destination`, several from one slot, each under a name of its own:
# destinations:
#   warehouse:
#     type: duckdb
#     path: {path}

# A stream that outgrows one slot: further ones, with a publication each, into the same destination.
# shards:
#   events:
#     publication: events_pub

# Memory of the process above which reading pauses; by default 3/4 of what there is.
# memory:
#   max_bytes: 1GiB

# When a stretch of the stream is written: at the first of these.
batch:
  max_fill_ms: 1000
  max_bytes: 8388608
  max_rows: 200000
  # Disk for large transactions until they commit; source.streaming: "off" has Postgres keep them.
  # spool_dir: /var/tmp
  spool_max_bytes: 20GiB

# How tables are copied.
copy:
  max_table_sync_workers: 4     # tables, or groups of small ones; each takes a slot
  max_connections_per_table: 4  # chunks of one table at a time
  chunk_rows: 250000

# Failures that waiting may cure; the delay doubles.
retry:
  initial_delay_ms: 500
  max_delay_ms: 30000
  max_attempts: 8

# How tables are compared with the source, by `etl-dagster repair` or after a lost slot.
repair:
  max_connections: 2            # reading one table at a time

# Once Postgres has removed WAL that the slot needs, a start stops; or makes another slot, and with
# `repair` replaces the rows that differ from the source's, with `recopy` copies every table again.
on_lost_slot: stop

# Every table's position as Meltano state, for `meltano state list`; kept in the state store.
meltano:
  enabled: true
  # state_backend: postgres://me@host/database/schema
  interval_s: 5

# Rows of a partition that is detached, dropped or truncated, where its table is published through
# the partition root: Postgres doesn't publish that. `delete` removes them by copying the table.
partitions_removed: keep

# Arrays, ranges, composites, enums, hstore: as native types of the destination, as json, or as the
# text that Postgres prints. For columns that are copied from now on.
nested: native

# numeric without precision: as text, exactly as it prints, as decimal(p,s), or as double. For
# columns that are copied from now on.
numeric: text

# What stands in a row for a value that its column's type can't hold, such as a NaN in a
# numeric(12,2): "null", clamp (the nearest value), text (the column is text, from its next copy
# on), quarantine (the row is kept apart from its table, from its next copy on) or fail (the table
# stops). None is lost: `etl-dagster odd` lists them.
odd_values: "null"

# How tables are kept, from their next copy on: mirror (as the source has them now), soft_delete
# (deleted rows are marked), append (a row for each change) or scd2 (a row for each version, with
# the time in which it was valid).
mode: mirror

# The key of hashed values (`mask: hash`): who has it can find values by trying.
# salt: ${{ETL_SALT}}

# What differs for single tables, or for all whose names are like a pattern.
tables: {{}}
  # "sales.*":
  #   name: "raw_{{schema}}.{{table}}"   # schema and table at the destination
  #   exclude: [ssn, "*_token"]        # columns that the destination doesn't have
  #   where: "country = 'DE'"          # rows that it has
  #   columns:
  #     "*email": {{mask: hash}}         # needs a salt, see above
  # public.events:
  #   mode: append
  #   copy: false               # only changes from now on
  #   partitions_removed: delete
  #   odd_values: quarantine
  #   columns:
  #     payload:
  #       nested: json
  #     amount:
  #       odd_values: fail
"""
_PASSWORD_VARIABLE = "SOURCE_PASSWORD"


@click.command(short_help="Write a commented etl.yaml to begin with.")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("etl.yaml"),
    show_default=True,
    help="The file to write.",
)
@click.option("--dsn", help="A libpq URI of the source; its password is not written.")
@click.option(
    "--publication",
    default="etl_pub",
    show_default=True,
    help="The publication whose tables are replicated.",
)
@click.option("--pipeline", default="main", show_default=True, help="The pipeline's name.")
@click.option(
    "--environment", default="dev", show_default=True, help="The first part of the state IDs."
)
@click.option("--path", default="etl.duckdb", show_default=True, help="The DuckDB file.")
@changes_something
def init(
    output: Path,
    dsn: str | None,
    publication: str,
    pipeline: str,
    environment: str,
    path: str,
    dry_run: bool,
    yes: bool,
) -> None:
    """Write a commented etl.yaml to begin with.

    --dry-run prints it. It asks only where the file exists.

    \b
    etl-dagster init --dsn postgresql://etl@db.example.com/shop --publication shop_pub
    """
    from etl_dagster.cli.files import write_text
    from etl_dagster.config import parse_config

    parts = _parts(dsn)
    text = _TEMPLATE.format(
        pipeline=_scalar(pipeline),
        environment=_scalar(environment),
        publication=_scalar(publication),
        path=_scalar(path),
        source="\n".join(_source_lines(parts)),
        sslmode=f"sslmode: {parts['sslmode']}" if "sslmode" in parts else "# sslmode: require",
    )
    import yaml

    # What is written is what `run` will accept.
    parse_config(yaml.safe_load(text), {}, origin="this command's options")
    if dry_run:
        click.echo(text, nl=False)
        return
    if output.exists():
        click.echo(f"{output} exists, and will be overwritten.", err=True)
        if not is_wanted(dry_run=False, yes=yes):
            return
    write_text(output, text, option="-o")
    its = "" if output == Path("etl.yaml") else f" -c {shlex.quote(str(output))}"
    width = len(f"etl-dagster doctor{its}")
    click.echo(f"Wrote {output}. Next:")
    click.echo(f"  1. Adapt it{'' if dsn else ', above all `source`'}.")
    click.echo(f"  2. export {_PASSWORD_VARIABLE}=...   (unless none is needed)")
    doctor, run = (f"etl-dagster {name}{its}".ljust(width) for name in ("doctor", "run"))
    click.echo(f"  3. {doctor}   shows what is missing in Postgres, and what to do.")
    click.echo(f"  4. {run}   copies the tables and streams their changes.")


def _parts(dsn: str | None) -> dict[str, str]:
    """The parts of a DSN; `_source_lines` leaves the password out of the file."""
    parts = {"host": "localhost", "port": "5432", "user": "etl", "dbname": "postgres"}
    if dsn is None:
        return parts
    from etl_dagster.errors import ConfigError
    from etl_dagster.pg.dsn import Dsn, DsnError

    try:
        found = Dsn.parse(dsn).parameters
    except DsnError as error:
        raise ConfigError([f"--dsn: {error}"], origin="the command line") from None
    if "service" in found:
        return dict(found)  # the service gives the rest
    return {**parts, **found}


def _source_lines(parts: Mapping[str, str]) -> list[str]:
    """A setting for each part that has one, and a DSN for the rest; no secrets."""
    parts = {key: value for key, value in parts.items() if key not in _LEFT_OUT}
    settings = dict(_SETTINGS)
    if "," in parts.get("host", "") or "," in parts.get("port", ""):
        del settings["host"], settings["port"]  # several servers
    rest = {key: value for key, value in parts.items() if key not in settings}
    lines = []
    if rest:
        from psycopg.conninfo import make_conninfo

        lines = [f"  dsn: {_scalar(make_conninfo('', **rest))}"]
    for key, setting in settings.items():
        if setting == "database":
            lines.append(f"  password: ${{{_PASSWORD_VARIABLE}:-}}")
        if key in parts and setting is not None:
            is_number = key in ("port", "connect_timeout")
            text = parts[key] if is_number else _scalar(parts[key])
            lines.append(f"  {setting}: {text}")
    return lines


#: The settings that stand for libpq's parameters; None: the template has a line for it.
_SETTINGS: Mapping[str, str | None] = {
    "host": "host",
    "port": "port",
    "user": "user",
    "dbname": "database",
    "sslmode": None,
    "sslrootcert": "sslrootcert",
    "sslcert": "sslcert",
    "sslkey": "sslkey",
    "connect_timeout": "connect_timeout_s",
}
#: Secrets, which come from the environment.
_LEFT_OUT = ("password", "sslpassword")


def _scalar(text: str) -> str:
    """The text as YAML and our own expansion read it back."""
    import json
    import re

    escaped = text.replace("$", "$$")
    plain = re.fullmatch(r"[A-Za-z/_][A-Za-z0-9_./-]*", escaped)
    is_word = escaped.lower() in {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    return escaped if plain and not is_word else json.dumps(escaped)
