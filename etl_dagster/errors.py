"""What can go wrong, one class for each thing a caller or an operator would do differently."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

#: The end of a solution, where the stream can't tell which rows differ.
EQUAL_AGAIN = (
    "compare every table with the source and replace the rows that differ (`etl-dagster repair "
    "--all`), or copy everything again (`etl-dagster reset --all`), then start again."
)


class EtlError(Exception):
    """What went wrong is the message (`reason`); what to do about it is `solution`.

    Neither ever holds a row value or a password.
    """

    solution: str = "Read the cause below; once it is gone, retry the table by hand."
    #: Whether waiting alone can help. The one place where retries are decided.
    retryable: bool = False
    #: Whether it ends by itself within seconds, as a server that starts up does.
    is_starting: bool = False

    def __init__(self, reason: str, *, solution: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        if solution is not None:
            self.solution = solution


class ConfigError(EtlError):
    """The configuration can't be used; every mistake found is listed, none was acted on."""

    solution = "Correct what is named above. `etl-dagster init` writes a commented example."

    def __init__(self, mistakes: Sequence[str], *, origin: str = "etl.yaml") -> None:
        count = len(mistakes)
        heading = f"{origin} has {count} mistake{'s' if count != 1 else ''}:"
        super().__init__("\n".join([heading, *(f"  {mistake}" for mistake in mistakes)]))
        self.mistakes = tuple(mistakes)
        self.origin = origin


class ConfigFileMissing(ConfigError):
    """There is no configuration where one was expected."""

    solution = (
        "Go to the folder that has it, or name the file: with -c or ETL_DAGSTER_CONFIG on the "
        "command line, as `path` in Dagster. `etl-dagster init` writes a new one."
    )

    def __init__(self, name: str, *, folder: str) -> None:
        # Past ConfigError's own: there is nothing to count.
        super(ConfigError, self).__init__(f"there is no file {name} in {folder}")
        self.mistakes = (self.reason,)
        self.origin = name


class NotOffered(EtlError):
    """The destination does not offer what was asked for."""

    solution = "Nothing is wrong with the configuration, and nothing was done."


class ShapeRefused(EtlError):
    """The settings of a table can't be applied, or would show what they hid before."""

    solution = (
        "Correct the settings of the table under `tables`; `etl-dagster doctor` checks them. Then "
        "restart the pipeline, and retry the table if it has stopped."
    )


#: How many tables a message lists.
_LISTED = 10


class TablesLeft(EtlError):
    """A comparison or repair is done, except for some tables: each with why, and what to do."""

    solution = "Correct what is named for each table, then repair these tables again."

    def __init__(self, left: Mapping[str, EtlError], *, tables: int) -> None:
        """Args:
        left: why each table was left, by its name.
        tables: how many there were in all.
        """
        count = f"{len(left)} of {tables} table{'s' if tables != 1 else ''}"
        lines = [f"  {name}: {why.reason}" for name, why in left.items()]
        if len(lines) > _LISTED:
            lines[_LISTED:] = [f"  ... and {len(lines) - _LISTED:,} more"]
        listed = "\n".join(lines)
        super().__init__(
            f"not compared, or not repaired: {count}\n{listed}", solution=_solution_of_each(left)
        )
        self.left = dict(left)
        self.retryable = all(why.retryable for why in left.values())


def _solution_of_each(left: Mapping[str, EtlError]) -> str:
    """What to do, and for which tables. Most tables are left for the same reason."""
    names: dict[str, list[str]] = {}
    for name, why in left.items():
        names.setdefault(why.solution, []).append(name)
    if len(names) < 2:
        return "".join(names)
    return "\n".join(f"{', '.join(tables)}: {solution}" for solution, tables in names.items())


class HookFailed(EtlError):
    """The function of a `hook` can't be loaded, failed, or returned rows that don't fit."""

    solution = "Correct the function, restart the pipeline, then retry the table if it has stopped."


class DecodeError(EtlError):
    """The stream holds bytes that are not pgoutput; it can't be trusted past this point."""

    solution = (
        "Restart the pipeline: it streams again from the last durable position. "
        "If the error returns at the same place, report it with the server's version."
    )

    def __init__(self, reason: str, *, offset: int | None = None) -> None:
        at = "" if offset is None else f" (at byte {offset} of the message)"
        super().__init__(f"{reason}{at}")
        #: Bytes from the start of the message, where it is known.
        self.offset = offset


# -- source ------------------------------------------------------------------------------------


class SourceError(EtlError):
    """The source Postgres refused or failed."""

    solution = "Read the server's message; `etl-dagster doctor` checks the source line by line."


class ValueNotHeld(SourceError):
    """A column's type at the destination can't hold a value, and `odd_values: fail` is set."""

    solution = (
        "Correct the value in the source, or choose another `odd_values` for the column; then "
        "retry the table."
    )


class QuarantineNeedsKey(SourceError):
    """`odd_values: quarantine` needs a key, and the table has no key."""

    solution = (
        "Add a primary key, or choose another `odd_values` for the table; then retry the table if "
        "it has stopped."
    )


class ModeNeedsKey(SourceError):
    """The mode of a table finds rows by their key, and the table has no key."""

    solution = (
        "Add a primary key, or choose mode append or mirror for the table; then retry the table if "
        "it has stopped."
    )


class ColumnReserved(SourceError):
    """A column of a table has a name that is reserved for the columns that its mode adds."""

    solution = (
        "Rename the column in the source, leave it out of the publication with a column list, or "
        "choose mode mirror for the table; then retry the table if it has stopped."
    )


class SourceUnreachable(SourceError):
    """No connection to the source, or it broke."""

    solution = "Check host, port and that the server is up; the pipeline reconnects by itself."
    retryable = True


class SourceSilent(SourceUnreachable):
    """The connection is open, and the server doesn't answer over it any more."""

    solution = (
        "No action needed: the pipeline reconnects by itself. If it happens again while the server "
        "decodes a large transaction, which older versions do without sending anything, raise "
        "source.receiver_timeout_s; else see what is between here and the server."
    )


class StandbyBehind(SourceUnreachable):
    """The source is a standby that has not replayed what was read from it before."""

    solution = (
        "No action needed while the standby catches up: the pipeline retries. If it does not, "
        "check that the standby streams from its primary: primary_conninfo, and the log of both."
    )


class ReadConflict(SourceError):
    """A standby ended a query, because the primary removed or locked what it was reading."""

    solution = (
        "No action needed if it is rare: the copy retries. Else set hot_standby_feedback = on on "
        "the standby, or raise its max_standby_streaming_delay."
    )
    retryable = True


class SourceAuthenticationFailed(SourceError):
    """Unknown user, or wrong password."""

    solution = (
        "Check source.user and source.password (or ETL_DAGSTER__SOURCE__PASSWORD), "
        "and the server's pg_hba.conf."
    )


class SourceNotPrepared(SourceError):
    """The source is reachable but isn't set up for logical replication."""


class SourceReplaced(SourceError):
    """The source is not the one whose changes were applied: another cluster or database."""

    solution = (
        "Point `source` to the server and database that this pipeline has read. If it is that "
        "server after an upgrade with pg_upgrade: `etl-dagster repair --all`. To copy everything "
        "from this one instead: `etl-dagster reset --all`. Then start again."
    )


class SourceRestored(SourceError):
    """The source is at an earlier point than what was applied, or on another history."""

    solution = (
        "The source was restored from a backup, or is a standby that lacked the newest changes. "
        f"What was applied since may not be in it: {EQUAL_AGAIN}"
    )


class PublicationRecreated(SourceNotPrepared):
    """The publication didn't exist while changes were made that are still to be streamed."""

    solution = (
        f"Postgres can't stream what was changed while no publication had this name: {EQUAL_AGAIN}"
    )


class PublicationMissing(SourceNotPrepared):
    """The publication doesn't exist in the source database."""

    def __init__(self, publication: str, known: Sequence[str]) -> None:
        there = f"it has {', '.join(map(repr, known))}" if known else "it has no publication"
        super().__init__(
            f"publication {publication!r} does not exist in the source database; {there}",
            solution=f'Create it: CREATE PUBLICATION "{publication}" FOR TABLE ...; '
            "or correct source.publication.",
        )
        self.publication = publication


class PublicationEmpty(SourceNotPrepared):
    """The publication holds no table."""

    def __init__(self, publication: str) -> None:
        super().__init__(
            f"publication {publication!r} contains no table",
            solution=f'Add one: ALTER PUBLICATION "{publication}" ADD TABLE ...;',
        )
        self.publication = publication


class PartitionIdentity(SourceError):
    """The replica identity of a partition lacks columns of the key of its root."""

    def __init__(
        self, table: str, key: Sequence[str], partition: str, identity: Sequence[str]
    ) -> None:
        own = f"by ({', '.join(key)})" if key else "only by all of its columns"
        super().__init__(
            f"a row of {table} is identified {own}, but of a row that is updated or deleted in "
            f"its partition {partition} Postgres sends ({', '.join(identity)}) alone",
            solution=f"On the source: ALTER TABLE {partition} REPLICA IDENTITY FULL, for every "
            f"such partition; or give {table} a primary key, which its partitions then have, too. "
            "Then retry the table.",
        )


class KeyChangesText(SourceError):
    """The text of a key column may change without a change of the row, as with `regclass`."""

    def __init__(self, table: str, column: str, type_name: str, tells: str) -> None:
        super().__init__(
            f"{column} in the key of {table} is of type {type_name}, whose text contains {tells}; "
            "Postgres publishes nothing then, and the row would not be found by its key again",
            solution=f"On the source: give {table} a key without {column}, such as by ALTER TABLE "
            "... REPLICA IDENTITY USING INDEX, or give the column another type, such as oid or "
            "numeric. Then retry the table.",
        )


class RowChangesText(SourceError):
    """A table has no key, and the text of a column may change without a change of the row."""

    def __init__(self, table: str, column: str, type_name: str, tells: str) -> None:
        super().__init__(
            f"{table} has no key, so that a row is found by all of its values, and {column} is of "
            f"type {type_name}, whose text contains {tells}; Postgres publishes nothing then, and "
            "the row would not be found again",
            solution=f"On the source: give {table} a key without {column}, or leave {column} out "
            "of the publication. Then retry the table.",
        )


class TableRewritten(SourceError):
    """All rows of a table were rewritten while it was copied, so they are in other places.

    VACUUM FULL, CLUSTER, TRUNCATE and some kinds of ALTER TABLE do that.
    """

    solution = "No action needed: the copy restarts from the beginning."
    retryable = True


class CopyOutdated(TableRewritten):
    """The table was altered so that its copy can't be brought up to date by the stream alone."""


class TableLocked(SourceError):
    """Another session kept a table locked for longer than its copy may wait."""

    solution = (
        "No action needed: the copy is tried again. pg_locks on the source shows which session "
        "has the lock."
    )
    retryable = True


class TableNameTaken(SourceError):
    """At the destination, another table still has the name that this one has in the source."""

    retryable = True

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(
            f"{holder} was called {name} before, and still is at the destination",
            solution="No action needed while the pipeline runs: the copy begins once the stream "
            "has renamed the table at the destination.",
        )


class SlotError(SourceError):
    """Something is wrong with a replication slot."""


class SlotOfPrimary(SlotError):
    """A standby keeps the slot for its primary, and can't read it before it is promoted."""

    solution = "Give one of the two pipelines another name; or let this one read the primary."


class SlotInUse(SlotError):
    """Another process reads the slot."""

    solution = (
        "Another replicator runs this pipeline. Stop it, or wait: the slot is free as soon as "
        "its connection ends."
    )
    retryable = True


class SlotOfAnotherDatabase(SlotError):
    """A pipeline of the same name replicates another database; slot names are the server's."""

    solution = "Give this pipeline another name: `pipeline` in etl.yaml."


class SlotNotCreated(SlotError):
    """No slot could be made now: open transactions, or no slot is free."""

    retryable = True


class NoSlotFree(SlotNotCreated):
    """The server has as many replication slots as it may have, or nearly so."""

    solution = "Raise max_replication_slots, or drop slots that are no longer read."


class SlotMissing(SlotError):
    """The slot is gone though tables depend on it; the changes since are lost to it."""

    solution = f"Find out who dropped the slot, then {EQUAL_AGAIN}"


class SlotInvalidated(SlotError):
    """Postgres invalidated the slot: WAL or catalog rows that it needed are removed."""

    solution = f"Raise max_slot_wal_keep_size on the source, then {EQUAL_AGAIN}"


class DestinationLeftBehind(SlotError):
    """One of several destinations lacks changes that the shared slot no longer has."""

    solution = "No action needed: its tables are copied again."


class SlotAdvanced(SlotError):
    """The slot was confirmed past what is durable at the destination: changes were skipped."""

    solution = f"Something else consumed this slot. Find it, then {EQUAL_AGAIN}"


# -- transactions in progress ------------------------------------------------------------------


class SpoolError(EtlError):
    """A transaction in progress can't be kept here until it commits.

    Nothing is lost: the stream begins again, and for an hour Postgres is asked to send transactions
    only once they have committed.
    """

    solution = "No action needed: Postgres keeps the transaction until it commits."
    retryable = True


class SpoolFull(SpoolError):
    """Transactions in progress are larger than `batch.spool_max_bytes`."""

    solution = (
        "Raise batch.spool_max_bytes if the disk has room. Until then Postgres keeps such "
        "transactions until they commit, which takes longer and nothing else."
    )


class SpoolUnusable(SpoolError):
    """The disk doesn't take transactions in progress: it is full, or can't be written."""

    solution = (
        "Make room, or point batch.spool_dir to a folder on a larger disk. Until then Postgres "
        "keeps such transactions until they commit, which takes longer and nothing else."
    )


class RollbackUnclear(SpoolError):
    """A transaction in progress rolled back to a savepoint near an ALTER TABLE.

    Postgres does not report whether the ALTER TABLE was rolled back, too.
    """


# -- state store -------------------------------------------------------------------------------


class StoreError(EtlError):
    """The state store refused or failed."""

    solution = "Check state_store.dsn; `etl-dagster doctor` checks its rights."


class StoreUnreachable(StoreError):
    """No connection to the state store, or it broke."""

    solution = "Check state_store.dsn and that the server is up; the pipeline reconnects by itself."
    retryable = True


class StoreRestored(StoreError):
    """The state store knows less than the destination: it was restored, or it is another one."""

    solution = (
        "Point state_store to the store that this pipeline used last. If that is lost, "
        f"{EQUAL_AGAIN}"
    )


class StateRollbackError(StoreError):
    """The table has no earlier state to go back to."""

    solution = "Reset the table instead."


class DestinationMetadataApplying(StoreError):
    """A schema change at the destination was begun and not finished."""

    solution = "Restart the pipeline; start-up finishes an interrupted change."


# -- destination -------------------------------------------------------------------------------


class SchemaTooNew(EtlError):
    """A newer version wrote a table's schema into the store or the destination."""

    solution = "Install that version, or a newer one."


class DestinationError(EtlError):
    """The destination refused or failed."""

    solution = "Read the destination's message; the pipeline continues once it accepts writes."


class DestinationUnreachable(DestinationError):
    """The destination can't be opened or reached."""

    solution = "Check the destination's settings and rights; the pipeline retries by itself."
    retryable = True


class DestinationsFailed(DestinationError):
    """Some of several destinations failed; the others have caught up."""

    solution = "Correct what each of them failed with, then start the pipeline again."

    def __init__(self, failures: Mapping[str, EtlError]) -> None:
        """Args:
        failures: what each destination failed with, by its name.
        """
        super().__init__(
            "; ".join(f"{name} failed: {failure.reason}" for name, failure in failures.items()),
            solution="\n".join(
                f"{name}: {failure.solution}" if len(failures) > 1 else failure.solution
                for name, failure in failures.items()
            ),
        )
        self.failures = dict(failures)
        self.retryable = all(failure.retryable for failure in failures.values())


class DestinationTooNew(DestinationError):
    """A newer version wrote the destination's files than the one that is installed here."""

    solution = "Install that version, or a newer one."


class TableWriteFailed(DestinationError):
    """One table's changes can't be written; those of the batch's other tables can.

    A destination raises it with nothing of the batch applied, or where it recognises what comes
    for the second time: the batch is written again without the table.
    """

    solution = "Read the destination's message, fix its cause, then retry the table."

    def __init__(self, table_id: int, reason: str, *, solution: str | None = None) -> None:
        super().__init__(reason, solution=solution)
        self.table_id = table_id


class RowsOutdated(TableWriteFailed):
    """The table's rows can't be brought up to date by its changes; a new copy has them right.

    The engine copies the table again, next to its old rows.
    """

    solution = "No action needed: the table is copied again."


class BatchTooLarge(DestinationError):
    """The destination can't take so many changes, or rows of a copy, in one piece.

    A destination raises it under the same terms as `TableWriteFailed`. A batch is then written in
    halves, down to a single change; if that can't be written either, its table stops.
    """

    solution = "Lower batch.max_bytes, or raise the destination's own limit."
    retryable = True


class DestinationReplaced(DestinationError):
    """The destination is not the one that the pipeline wrote: another one, a new one, or gone."""

    solution = (
        "Put the right destination back, or correct the section `destination`. To copy everything "
        "into this one instead: `etl-dagster reset --all`, then start again."
    )


class DestinationShared(DestinationError):
    """Another pipeline has written to a destination that can hold one pipeline's tables only."""

    solution = (
        "Give each pipeline a place of its own (`destination.path`, or another database in "
        "`destination.dsn`). If the pipeline was renamed, "
        "give it its old name back, or move the file away: then everything is copied again."
    )


class ShardsOverlap(SourceNotPrepared):
    """A table is in the publications of several shards: each would write it."""

    solution = (
        "Take it out of all publications but one. To bring a table that is streamed to another "
        "shard: `etl-dagster move TABLE --to SHARD`."
    )


class TableOfAnotherShard(EtlError):
    """Another shard has the table, by the state store, and may still write it."""

    def __init__(self, name: str, other: str, *, shard: str, publication: str) -> None:
        table = shlex.quote(name)
        super().__init__(
            f"{name} is a table of the shard {other!r}, and is not copied by the shard {shard!r}",
            solution=f"To bring it over without a copy: put it back into publication "
            f"{publication!r} alone, and `etl-dagster move {table} --to {shard}`. To copy it: take "
            f"it out of publication {publication!r}, let the shard {other!r} run until it has let "
            f"go of the table, then `etl-dagster resync {table} --shard {shard}`.",
        )


class MoveNotFinished(EtlError):
    """A table is being moved to this shard, and the other shard has not released it yet."""

    retryable = True

    def __init__(self, name: str, other: str, shard: str) -> None:
        super().__init__(
            f"{name} is being moved to the shard {shard!r}, and the shard {other!r} still has it",
            solution=f"Stop both; `etl-dagster move {shlex.quote(name)} --to {shard}` finishes it.",
        )


class MoveRefused(EtlError):
    """A table can't be moved to another shard as it is; nothing was changed."""

    solution = (
        "Bring it over with a copy: take it out of the one publication, let that shard run until "
        "it has let go of the table, and add it to the other one."
    )


class DestinationRestored(DestinationError):
    """The destination is an older copy of itself: changes that were written are not in it."""

    solution = f"Put the newest copy back, if there is one. Else {EQUAL_AGAIN}"


class CopyMissing(DestinationError):
    """The destination does not have the copy of a table that the state store knows as complete."""

    solution = (
        "Check that every process of this pipeline writes the same destination. Then copy the "
        "table again: `etl-dagster reset SCHEMA.TABLE`, or all of them: `etl-dagster reset --all`."
    )


class Superseded(DestinationError):
    """A newer replicator took over this pipeline; this one must write nothing more."""

    solution = "No action needed: the newer process continues."


# -- pipeline ----------------------------------------------------------------------------------


class InvalidState(EtlError):
    """The call or command is not possible in the present state."""


class PipelineInUse(EtlError):
    """Another process runs the pipeline already."""

    solution = "Stop the other process, or give this pipeline another name."


class HandoverTimeout(EtlError):
    """A table was copied, and no process runs the pipeline that would take it over.

    The copy is given up: its slot is dropped, so that the source keeps no WAL for it.
    """

    solution = (
        "Start the pipeline (`etl-dagster run`, or turn on its sensor in Dagster). It copies the "
        "table again from the beginning."
    )
    retryable = True

    def __init__(self, table_name: str, *, waited_s: float) -> None:
        super().__init__(
            f"{table_name} is copied, but for {waited_s:.0f} s no process has run the pipeline to "
            "take it over"
        )


class CopyNeeded(EtlError):
    """A table that stopped can't be resumed: its changes since are not kept."""

    def __init__(self, table_name: str, reason: str) -> None:
        table = shlex.quote(table_name)
        super().__init__(
            reason,
            solution=f"Copy it again, next to its old rows: `etl-dagster resync {table}`.",
        )


class LeaseLost(EtlError):
    """The worker's lease ended while it worked; another may have taken its place."""

    solution = "No action needed: the work is resumed where it stopped."
    retryable = True
