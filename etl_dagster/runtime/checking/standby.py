"""Whether a standby is fit to be the source, and whether its primary is the one that is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, SourceNotPrepared, StandbyBehind
from etl_dagster.runtime.checking.check import APPLICATION, Check, Connection
from etl_dagster.source.control import SourceControl
from etl_dagster.source.primary import fetch_primary_facts, primary_connection
from etl_dagster.source.readiness import ServerFacts
from etl_dagster.source.standby import fetch_standby_facts

_OLDEST_VERSION = 160000


def check_standby(
    connection: Connection, config: PipelineConfig, facts: ServerFacts
) -> Iterator[Check]:
    """Nothing where the server is a primary, such as after a promotion."""
    if not facts.is_standby:
        if config.source.standby:
            yield Check.ok("standby", "the source is not a standby now, and needs no primary")
        return
    refusal = _refusal(config, facts)
    if refusal is not None:
        yield Check.error("standby", refusal)
        return
    yield Check.ok("standby", "the source is a standby, which is read and not written to")
    yield from _check_settings(connection)
    yield from _check_primary(config)


def _refusal(config: PipelineConfig, facts: ServerFacts) -> SourceNotPrepared | None:
    if not config.source.standby:
        return SourceNotPrepared(
            "the source is a standby, where nothing can be written: the pipeline marks the WAL",
            solution="Connect to the primary; or, to replicate from this standby (PostgreSQL 16 or "
            "later), set source.standby: true.",
        )
    if facts.version < _OLDEST_VERSION:
        return SourceNotPrepared(
            f"the source is a standby of PostgreSQL {facts.version_text}; a standby has logical "
            "decoding from PostgreSQL 16 on",
            solution="Connect to the primary, or upgrade both.",
        )
    return None


def _check_settings(connection: Connection) -> Iterator[Check]:
    facts = fetch_standby_facts(connection)
    if not facts.has_streamed:
        failure: EtlError = StandbyBehind(
            "the standby has not streamed from its primary since it was started: it replays what "
            "it has, or reads an archive"
        )
        yield Check.error("standby's WAL", failure)
    if not facts.has_feedback:
        failure = SourceNotPrepared(
            "hot_standby_feedback is off on the standby: as soon as the primary vacuums its "
            "catalog, the pipeline's slots are lost",
            solution="On the standby: ALTER SYSTEM SET hot_standby_feedback = on; then reload it.",
        )
        yield Check.error("hot_standby_feedback", failure)
    elif not facts.primary_slot_name:
        yield Check.warning(
            "hot_standby_feedback",
            "primary_slot_name is empty on the standby: while it is disconnected, the primary may "
            "remove what the pipeline's slots need, and they are lost",
            "On the primary: SELECT pg_create_physical_replication_slot('standby_1'); on the "
            "standby: ALTER SYSTEM SET primary_slot_name = 'standby_1'; then reload it.",
        )
    else:
        yield Check.ok("hot_standby_feedback", f"on, by slot {facts.primary_slot_name!r}")
    if facts.is_paused:
        yield Check.warning(
            "replay",
            "the standby's replay is paused: nothing arrives",
            "On the standby: SELECT pg_wal_replay_resume();",
        )
    elif facts.apply_delay_ms:
        yield Check.warning(
            "replay",
            f"recovery_min_apply_delay is {facts.apply_delay_ms / 1000:g} s: changes arrive as "
            "much later, and a copied table waits for it several times",
            "Read from a standby without a delay.",
        )


def _check_primary(config: PipelineConfig) -> Iterator[Check]:
    name = "primary"
    if config.source.primary_dsn is None:
        yield Check.ok(
            name,
            "source.primary_dsn is not given: no heartbeats; a new slot waits until the primary is "
            "written to, or runs SELECT pg_log_standby_snapshot()",
        )
        return
    try:
        with (
            closing(SourceControl(config.source, application_name=APPLICATION)) as control,
            primary_connection(control, config.source) as connection,
        ):
            facts = fetch_primary_facts(connection)
    except EtlError as error:
        yield Check.error(name, error)
        return
    if facts.wal_level != "logical":
        failure = SourceNotPrepared(
            f"wal_level is {facts.wal_level!r} on the primary; its standby decodes only 'logical'",
            solution="On the primary: ALTER SYSTEM SET wal_level = 'logical'; then restart it.",
        )
        yield Check.error(name, failure)
    elif not facts.may_log_snapshot:
        yield Check.warning(
            name,
            f"{facts.user!r} may not run pg_log_standby_snapshot() on the primary: each new slot "
            "waits up to 15 s for the primary to do so",
            f'On the primary: GRANT EXECUTE ON FUNCTION pg_log_standby_snapshot() TO "{facts.user}"'
            ";",
        )
    else:
        yield Check.ok(name, "heartbeats and new slots go by the primary")
