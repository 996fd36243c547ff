"""Whether the server is fit to be a source: version, WAL, free slots, rights, settings."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import EtlError, SourceNotPrepared
from etl_dagster.runtime.checking.check import APPLICATION, Check, Connection
from etl_dagster.runtime.checking.standby import check_standby
from etl_dagster.source.connection import connect, translate
from etl_dagster.source.readiness import ServerFacts, fetch_absent_standbys, names_standby
from etl_dagster.source.slots import (
    apply_slot_name,
    fetch_apply_slot,
    fetch_slot,
    fetch_table_sync_slots,
)
from etl_dagster.words import human_bytes, names

#: pg_replication_slots.wal_status and max_slot_wal_keep_size came with 13; older ones are untried.
_OLDEST_VERSION = 140000
#: Slots that standbys keep, too.
_FAILOVER_VERSION = 170000
#: Below, a pause of minutes on a busy server loses the slot.
_SMALL_WAL_LIMIT = 1024**3
_SHORT_SENDER_TIMEOUT_MS = 10_000
#: Application names of replication connections begin like this.
_OUR_NAMES = "etl_dagster "


def check_server(
    connection: Connection, config: PipelineConfig, facts: ServerFacts
) -> Iterator[Check]:
    yield _check_version(facts)
    yield from check_standby(connection, config, facts)
    yield _check_wal_level(facts)
    yield _check_free_slots(connection, config, facts)
    yield from _check_slots_aside(connection, config, facts)
    yield _check_senders(connection, config, facts)
    if facts.max_wal_senders:
        yield _check_replication_right(config, facts)
    yield from _check_failover(connection, config, facts)
    yield from _check_settings(facts)


def _check_version(facts: ServerFacts) -> Check:
    name = "server version"
    if facts.version < _OLDEST_VERSION:
        failure = SourceNotPrepared(
            f"the source runs PostgreSQL {facts.version_text}; the pipeline needs 14 or later",
            solution="Upgrade the source.",
        )
        return Check.error(name, failure)
    return Check.ok(name, f"PostgreSQL {facts.version_text}")


def _check_wal_level(facts: ServerFacts) -> Check:
    if facts.wal_level == "logical":
        return Check.ok("wal_level", "logical")
    failure = SourceNotPrepared(
        f"wal_level is {facts.wal_level!r} on the source; logical replication needs 'logical'",
        solution="ALTER SYSTEM SET wal_level = 'logical'; then restart the server "
        "(on Amazon RDS: set rds.logical_replication = 1 in the parameter group and reboot).",
    )
    return Check.error("wal_level", failure)


def _check_free_slots(connection: Connection, config: PipelineConfig, facts: ServerFacts) -> Check:
    name = "replication slots"
    has_apply = fetch_apply_slot(connection, config) is not None
    syncing = len(fetch_table_sync_slots(connection, config.pipeline))
    free = facts.max_replication_slots - facts.used_replication_slots
    wanted = (not has_apply) + max(config.copy_tables.max_table_sync_workers - syncing, 0)
    text = f"{facts.used_replication_slots} of {facts.max_replication_slots} in use"
    raise_it = "Raise max_replication_slots on the source and restart it, or drop unused slots"
    if free == 0 and not has_apply:
        failure = SourceNotPrepared(
            f"no replication slot is free on the source: {text}",
            solution=f"{raise_it}; the view pg_replication_slots lists them.",
        )
        return Check.error(name, failure)
    if free < wanted:
        return Check.warning(
            name,
            f"{text}; {free} free, up to {wanted} wanted while tables are copied",
            f"{raise_it}; or lower copy.max_table_sync_workers.",
        )
    return Check.ok(name, text)


def _check_slots_aside(
    connection: Connection, config: PipelineConfig, facts: ServerFacts
) -> Iterator[Check]:
    """Of several destinations, each that is set aside needs a slot of its own, and a sender."""
    if config.membership is None:
        return
    name = "slots to set aside"
    own = [apply_slot_name(each) for each in config.membership.all_members]
    lacking = [slot for slot in own if fetch_slot(connection, slot) is None]
    free = facts.max_replication_slots - facts.used_replication_slots
    # The shared slot, where it is still to be made, comes first.
    free -= fetch_apply_slot(connection, config) is None
    free_senders = facts.max_wal_senders - facts.used_wal_senders
    if min(free, free_senders) >= len(lacking):
        yield Check.ok(name, f"free for each of {len(own)} destinations")
        return
    yield Check.warning(
        name,
        f"{max(free, 0)} slots and {max(free_senders, 0)} WAL senders are free, and each of "
        f"{len(lacking)} destinations may need one: where none is free, one that hangs or fails "
        "holds the others up, and the source keeps WAL for all",
        "Raise max_replication_slots and max_wal_senders on the source and restart it, or drop "
        "unused slots.",
    )


def _check_senders(connection: Connection, config: PipelineConfig, facts: ServerFacts) -> Check:
    name = "WAL senders"
    slot = fetch_apply_slot(connection, config)
    is_streaming = slot is not None and slot.active
    free = facts.max_wal_senders - facts.used_wal_senders
    # The apply worker's, one for each table sync worker.
    wanted = (not is_streaming) + config.copy_tables.max_table_sync_workers
    text = f"{facts.used_wal_senders} of {facts.max_wal_senders} in use"
    raise_it = "Raise max_wal_senders on the source and restart it"
    if free <= 0 and not is_streaming:
        failure = SourceNotPrepared(
            f"no WAL sender is free on the source: {text}",
            solution=f"{raise_it}, or end other replication (see the view pg_stat_replication).",
        )
        return Check.error(name, failure)
    if free < wanted and not is_streaming:
        return Check.warning(
            name,
            f"{text}; {free} free, up to {wanted} wanted while tables are copied",
            f"{raise_it}; or lower copy.max_table_sync_workers.",
        )
    return Check.ok(name, text)


def _check_replication_right(config: PipelineConfig, facts: ServerFacts) -> Check:
    """By doing it: attributes, memberships of managed services and pg_hba.conf all have a say."""
    name = "replication right"
    try:
        with connect(config.source, application_name=APPLICATION, replication=True) as connection:
            connection.execute("IDENTIFY_SYSTEM")
    except EtlError as error:
        return Check.error(name, error)
    except psycopg.Error as error:
        return Check.error(name, translate(error, "opening a replication connection"))
    return Check.ok(name, f"{facts.user!r} may replicate")


def _check_failover(
    connection: Connection, config: PipelineConfig, facts: ServerFacts
) -> Iterator[Check]:
    if not config.source.failover:
        return
    name = "failover"
    if facts.version < _FAILOVER_VERSION:
        failure = SourceNotPrepared(
            f"source.failover needs PostgreSQL 17 or later; the source runs {facts.version_text}",
            solution="Remove source.failover, or upgrade the source.",
        )
        yield Check.error(name, failure)
        return
    if not facts.synchronized_standby_slots:
        yield Check.warning(
            name,
            "synchronized_standby_slots is empty: the pipeline may receive changes before a "
            "standby has them, and then refuses that standby once it is promoted",
            "Name the physical slots of the standbys: ALTER SYSTEM SET "
            "synchronized_standby_slots = 'standby_1'; then reload the server.",
        )
        return
    absent = fetch_absent_standbys(connection, facts.synchronized_standby_slots)
    if absent:
        yield Check.warning(
            name,
            f"no standby reads {names(absent)}, named in synchronized_standby_slots: nothing is "
            "streamed until one does",
            "Start the standby, or take its slot out of synchronized_standby_slots and reload the "
            "server.",
        )
        return
    yield Check.ok(name, f"changes wait for {facts.synchronized_standby_slots}")


def _check_settings(facts: ServerFacts) -> Iterator[Check]:
    limit = facts.max_slot_wal_keep_bytes
    if limit is None:
        yield Check.warning(
            "WAL limit",
            "max_slot_wal_keep_size is unlimited: while the pipeline is stopped, "
            "the source keeps WAL until its disk is full",
            "Set max_slot_wal_keep_size to what the disk can spare, "
            "enough for the longest pause you expect.",
        )
    elif limit < _SMALL_WAL_LIMIT:
        yield Check.warning(
            "WAL limit",
            f"max_slot_wal_keep_size is {human_bytes(limit)}: a pause in which more WAL is "
            "written loses the slot, and every table must be copied again",
            "Raise it to what the disk can spare.",
        )
    else:
        yield Check.ok("WAL limit", f"max_slot_wal_keep_size is {human_bytes(limit)}")
    timeout = facts.wal_sender_timeout_ms
    if 0 < timeout < _SHORT_SENDER_TIMEOUT_MS:
        yield Check.warning(
            "wal_sender_timeout",
            f"{timeout} ms: a short network delay ends the stream",
            "Raise wal_sender_timeout; 60 s is usual.",
        )
    else:
        yield Check.ok("wal_sender_timeout", f"{timeout / 1000:g} s" if timeout else "never")
    if facts.idle_slot_timeout_s:
        yield Check.warning(
            "idle slots",
            f"idle_replication_slot_timeout is {facts.idle_slot_timeout_s} s: a longer pause of "
            "the pipeline loses the slot, and every table must be copied again",
            "Set it to 0, or well above the longest pause you expect.",
        )
    named = names_standby(facts.synchronous_standby_names, _OUR_NAMES)
    if named is not None:
        yield Check.warning(
            "synchronous standbys",
            f"{named!r} in synchronous_standby_names also means this pipeline's connections "
            f"({_OUR_NAMES}...): every commit on the source may wait until the destination has "
            "its changes, and without end while the pipeline is stopped",
            "Name the standbys that are meant: "
            "ALTER SYSTEM SET synchronous_standby_names = 'standby_1'; then reload the server.",
        )
