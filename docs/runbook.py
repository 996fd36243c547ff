"""Writes the runbook: every error with its reason, its solution, its messages, and a way to see it.

Classes and messages are read from the code; how to provoke an error is written here, and a test
holds that there is an entry for each.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import getdoc
from pathlib import Path
from typing import Final

import etl_dagster
from etl_dagster.errors import EtlError

_PACKAGE: Final = Path(etl_dagster.__file__).parent
_TESTS: Final = "https://github.com/etl-dagster/etl-dagster/blob/main/tests/"


@dataclass(frozen=True, slots=True)
class Provoked:
    """How to see an error on purpose, and the test that does so: its file and its name."""

    how: str
    file: str = ""
    test: str = ""

    def __str__(self) -> str:
        if not self.test:
            return self.how
        return f'{self.how} ([test]({_TESTS}{self.file} "{self.test}"))'


#: By the name of the class. Each is for a pipeline that is set up for it, never for production.
PROVOKED: Final[Mapping[str, Provoked]] = {
    "BatchTooLarge": Provoked(
        "Set `destination.memory_limit` of a DuckDB file to a few MB, and update many rows in one "
        "transaction.",
        "integration/test_duckdb_updates.py",
        "test_changes_that_need_more_memory_than_available_are_refused_as_too_large",
    ),
    "ColumnReserved": Provoked(
        "Add a column `_etl_op` to a table in mode `append`.",
        "integration/test_modes_pipeline.py",
        "test_a_table_that_cannot_be_kept_is_refused_before_anything_is_created",
    ),
    "ConfigError": Provoked(
        "Misspell a setting in `etl.yaml`, or use a variable that is not set.",
        "integration/test_dagster_discovery.py",
        "test_an_unset_variable_keeps_the_assets_and_is_named_by_the_tick",
    ),
    "ConfigFileMissing": Provoked(
        "Run `etl-dagster status` in a folder without `etl.yaml`.",
        "unit/test_cli.py",
        "test_a_missing_configuration_points_to_init",
    ),
    "CopyMissing": Provoked(
        "Stop the pipeline, copy its DuckDB file, copy one more table, and put the older file back "
        "under a state store that keeps no record of the destination.",
        "integration/test_belonging.py",
        "test_a_table_copied_after_the_backup_is_found_missing",
    ),
    "CopyNeeded": Provoked(
        "Set `retry.max_retained_wal: 0`, have a table stop, and run `etl-dagster retry`.",
        "integration/test_retry.py",
        "test_tables_that_cannot_be_kept_need_a_copy_and_a_retry_says_so",
    ),
    "CopyOutdated": Provoked(
        "Rename one column and drop another while a large table is copied. The copy is then made "
        "again by itself, so a small table shows nothing."
    ),
    "DecodeError": Provoked(
        "Not by a server that works: it takes damaged bytes on the replication connection.",
        "unit/test_protocol_fuzz.py",
        "test_broken_bytes_give_a_decode_error_or_a_valid_batch",
    ),
    "DestinationError": Provoked(
        "Point `destination.path` to a file that is not a DuckDB file.",
        "integration/test_duckdb_destination.py",
        "test_a_file_of_another_kind_is_refused_at_once",
    ),
    "DestinationLeftBehind": Provoked(
        "Not on purpose: of several destinations, one must fail after the shared slot was "
        "confirmed past what it has."
    ),
    "DestinationMetadataApplying": Provoked(
        "Not in a pipeline that runs: a start finishes an interrupted change, so only code that "
        "asks the state store itself can meet it.",
        "unit/test_provoked.py",
        "test_a_change_only_begun_at_the_destination_is_not_taken_for_done",
    ),
    "DestinationReplaced": Provoked(
        "Stop the pipeline, delete its DuckDB file, and start it again.",
        "integration/test_belonging.py",
        "test_a_missing_older_or_different_file_is_refused",
    ),
    "DestinationRestored": Provoked(
        "Stop the pipeline, copy its DuckDB file, let it continue, and put the copy back.",
        "integration/test_belonging.py",
        "test_a_missing_older_or_different_file_is_refused",
    ),
    "DestinationShared": Provoked(
        "Give two pipelines the same `destination.path`.",
        "integration/test_belonging.py",
        "test_a_second_pipeline_in_one_file_is_refused",
    ),
    "DestinationTooNew": Provoked(
        "Open the DuckDB file once with a newer DuckDB that writes a newer format.",
        "integration/test_duckdb_files.py",
        "test_a_file_of_a_newer_version_of_duckdb_is_named_as_such",
    ),
    "DestinationUnreachable": Provoked(
        "Open the DuckDB file in the `duckdb` shell, without `-readonly`, while the pipeline runs.",
        "integration/test_duckdb_destination.py",
        "test_a_process_that_keeps_the_file_open_is_named",
    ),
    "DestinationsFailed": Provoked(
        "With several destinations, make the folder of one of them read-only, and run "
        "`etl-dagster run --until-caught-up`.",
        "unit/test_fan_out_waiting.py",
        "test_the_others_catch_up_before_the_failed_ones_are_reported",
    ),
    "HandoverTimeout": Provoked(
        "Copy a table in a process of its own, such as a Dagster run, and stop the process that "
        "streams before the copy ends.",
        "integration/test_table_sync.py",
        "test_a_copy_that_no_process_takes_over_is_given_up",
    ),
    "HookFailed": Provoked(
        "Raise an exception in the function that `hook` names.",
        "unit/test_shaping_rows.py",
        "test_a_hook_that_breaks_the_rules_fails_without_showing_a_value",
    ),
    "InvalidState": Provoked(
        "Run `etl-dagster retry` for a table that has not stopped.",
        "unit/test_provoked.py",
        "test_a_table_that_has_not_stopped_is_not_retried",
    ),
    "KeyChangesText": Provoked(
        "Publish a table whose primary key has a column of type `regclass`.",
        "integration/test_key_types.py",
        "test_rows_are_found_by_what_postgres_calls_equal",
    ),
    "LeaseLost": Provoked(
        "End the sessions of the pipeline in the state store with `pg_terminate_backend`, and "
        "start a second process before the first has connected again.",
        "unit/test_pipeline.py",
        "test_a_pipeline_whose_place_another_process_took_ends",
    ),
    "ModeNeedsKey": Provoked(
        "Set `mode: scd2` for a table without a primary key.",
        "integration/test_modes_pipeline.py",
        "test_a_table_that_cannot_be_kept_is_refused_before_anything_is_created",
    ),
    "MoveNotFinished": Provoked(
        "Kill `etl-dagster move` before it ends, and start the shard that gets the table.",
        "unit/test_provoked.py",
        "test_an_interrupted_move_is_told_from_a_table_of_another_shard",
    ),
    "MoveRefused": Provoked(
        "Run `etl-dagster move` for the last table of a publication.",
        "integration/test_shards.py",
        "test_tables_that_cannot_be_moved_are_refused_by_name",
    ),
    "NoSlotFree": Provoked(
        "Create slots on the source until `max_replication_slots` is reached, and reset a table.",
        "integration/test_fan_out.py",
        "test_the_lack_of_a_free_slot_is_reported_until_one_is_free",
    ),
    "NotOffered": Provoked(
        "Run `etl-dagster remove --with-tables` with an HTTP destination.",
        "unit/test_provoked.py",
        "test_the_tables_of_a_service_can_be_neither_removed_nor_compared",
    ),
    "PartitionIdentity": Provoked(
        "Publish a partitioned table through its root (`publish_via_partition_root`), and give one "
        "partition another replica identity.",
        "integration/test_partitions.py",
        "test_partitions_with_another_replica_identity_than_their_root_stop_the_table",
    ),
    "PipelineInUse": Provoked(
        "Run `etl-dagster run` twice.",
        "integration/test_cli_answers.py",
        "test_answers_about_a_running_pipeline_name_its_process",
    ),
    "PublicationEmpty": Provoked(
        "`CREATE PUBLICATION etl_pub;` without a table.",
        "integration/test_preflight.py",
        "test_a_publication_without_tables_is_refused",
    ),
    "PublicationMissing": Provoked(
        "`DROP PUBLICATION etl_pub;`",
        "integration/test_preflight.py",
        "test_a_missing_publication_is_named_with_the_existing_ones",
    ),
    "PublicationRecreated": Provoked(
        "Stop the pipeline, drop the publication, change a row, create the publication again, and "
        "start the pipeline.",
        "integration/test_continuation.py",
        "test_a_recreated_publication_is_not_mistaken_for_an_unreachable_server",
    ),
    "QuarantineNeedsKey": Provoked(
        "Set `odd_values: quarantine` for a table without a primary key.",
        "integration/test_quarantine_pipeline.py",
        "test_a_table_without_a_key_is_refused_before_anything_is_made",
    ),
    "ReadConflict": Provoked(
        "With a standby as the source, set `max_standby_streaming_delay = 0` there, and run VACUUM "
        "on the primary while a large table is copied.",
        "unit/test_pg_failures.py",
        "test_a_query_that_a_standby_ends_is_a_conflict_that_passes",
    ),
    "RollbackUnclear": Provoked(
        "In one large transaction, alter a table after a savepoint, write rows, and roll back to "
        "the savepoint, with the event trigger installed.",
        "unit/test_streamed.py",
        "test_it_is_never_guessed_whether_an_alteration_was_in_the_savepoint",
    ),
    "RowChangesText": Provoked(
        "Publish a table without a key, with `REPLICA IDENTITY FULL` and a column of type "
        "`regclass`."
    ),
    "RowsOutdated": Provoked(
        "With a dlt destination, rename a column in the source and update a row.",
        "unit/test_dlt_changes.py",
        "test_after_a_change_that_dlt_cannot_make_a_table_is_copied_again",
    ),
    "SchemaTooNew": Provoked(
        "Start an older version of etl-dagster on a state store that a newer one has used.",
        "unit/test_pg_types.py",
        "test_what_a_later_version_adds_is_ignored_and_what_it_changes_is_refused",
    ),
    "ShapeRefused": Provoked(
        "Exclude a column of the primary key under `tables`.",
        "integration/test_shaped_tables.py",
        "test_settings_that_cannot_be_followed_are_refused_before_anything_starts",
    ),
    "ShardsOverlap": Provoked(
        "Add one table to the publications of two shards, and start the pipeline.",
        "integration/test_shards.py",
        "test_a_table_in_two_publications_is_refused",
    ),
    "SlotAdvanced": Provoked(
        "Stop the pipeline, change a row, and run `SELECT pg_logical_slot_get_binary_changes(...)` "
        "or `pg_replication_slot_advance(...)` on its slot.",
        "integration/test_pipeline.py",
        "test_a_slot_that_another_reader_moved_is_refused",
    ),
    "SlotError": Provoked(
        "Before the pipeline's first start, make a slot of its name with another plugin: `SELECT "
        "pg_create_logical_replication_slot('etl_dagster_apply_PIPELINE', 'test_decoding')`.",
        "unit/test_provoked.py",
        "test_a_slot_that_another_program_made_is_refused_by_name",
    ),
    "SlotInUse": Provoked(
        "Stop the pipeline, read its slot with `pg_recvlogical`, and start the pipeline.",
        "integration/test_pipeline.py",
        "test_a_slot_that_another_connection_still_reads_is_waited_for",
    ),
    "SlotInvalidated": Provoked(
        "Set `max_slot_wal_keep_size = '1MB'` on a test server, stop the pipeline, write 100 MB, "
        "and run CHECKPOINT.",
        "integration/test_lost_slot.py",
        "test_a_lost_slot_is_replaced_and_every_table_copied_if_so_configured",
    ),
    "SlotMissing": Provoked(
        "Stop the pipeline, and run `SELECT "
        "pg_drop_replication_slot('etl_dagster_apply_PIPELINE')`.",
        "integration/test_pipeline.py",
        "test_a_slot_that_vanished_is_refused",
    ),
    "SlotNotCreated": Provoked(
        "In an open transaction on the source, insert a row, and reset a table: its slot waits for "
        "the end of that transaction. The copy gives up after 60 s, and tries again.",
    ),
    "SlotOfAnotherDatabase": Provoked(
        "Run two pipelines of the same name for two databases of one server, with separate state "
        "stores.",
        "integration/test_slots.py",
        "test_a_slot_of_another_database_is_refused",
    ),
    "SlotOfPrimary": Provoked(
        "With `failover: true` on the primary, start a pipeline of the same name on its standby.",
        "integration/test_failover.py",
        "test_a_promotion_loses_and_doubles_nothing",
    ),
    "SourceAuthenticationFailed": Provoked(
        "Set `ETL_DAGSTER__SOURCE__PASSWORD=wrong`.",
        "integration/test_preflight.py",
        "test_a_wrong_password_is_a_finding_that_does_not_show_it",
    ),
    "SourceError": Provoked(
        "While the pipeline runs, revoke SELECT on a published table from its role, and reset the "
        "table. (A start would refuse it as `SourceNotPrepared`.)"
    ),
    "SourceNotPrepared": Provoked(
        "Revoke SELECT on a published table from the pipeline's role, and start the pipeline.",
        "integration/test_preflight.py",
        "test_a_user_without_select_is_told_the_grants",
    ),
    "SourceReplaced": Provoked(
        "Point `source.database` to another database that has a publication of the same name.",
        "integration/test_origin.py",
        "test_another_database_and_another_cluster_are_refused",
    ),
    "SourceRestored": Provoked(
        "Stop the pipeline, restore the source from a backup that is older than the last change, "
        "and start the pipeline.",
        "integration/test_origin.py",
        "test_a_source_that_was_restored_is_refused_with_the_store_elsewhere",
    ),
    "SourceSilent": Provoked(
        "Stop the walsender process with SIGSTOP on a test server, or drop the connection's "
        "packets in a firewall.",
        "unit/test_replication_stream.py",
        "test_a_server_that_does_not_answer_is_given_up",
    ),
    "SourceUnreachable": Provoked(
        "Stop the source's server.",
        "integration/test_preflight.py",
        "test_an_unreachable_server_is_a_finding",
    ),
    "SpoolError": Provoked(
        "It groups the three errors about transactions in progress; see those.",
        "unit/test_spool.py",
        "test_after_a_failure_large_transactions_are_read_whole_for_an_hour",
    ),
    "SpoolFull": Provoked(
        "Set `batch.spool_max_bytes: 1MB`, and insert a million rows in one transaction.",
        "unit/test_spool.py",
        "test_all_transactions_together_have_a_limit",
    ),
    "SpoolUnusable": Provoked(
        "Point `batch.spool_dir` to a full disk, and run a large transaction on the source.",
        "unit/test_spool.py",
        "test_a_full_disk_is_an_error_that_says_what_to_do",
    ),
    "StandbyBehind": Provoked(
        "With a standby as the source, stop its primary, and restart the standby.",
        "unit/test_belonging.py",
        "test_a_standby_that_is_behind_is_waited_for",
    ),
    "StateRollbackError": Provoked(
        "Call `rollback_table_state` of a state store for a table that has one state only.",
        "conformance/test_stores.py",
        "test_a_table_without_an_earlier_state_is_named",
    ),
    "StoreError": Provoked(
        "Point `state_store.dsn` to a pooler in transaction mode, without `session_dsn`.",
        "integration/test_pooler.py",
        "test_a_lease_through_a_pooler_is_refused_and_the_setting_is_named",
    ),
    "StoreRestored": Provoked(
        "Stop the pipeline, dump the state store, let the pipeline continue, and restore the dump.",
        "integration/test_belonging.py",
        "test_a_store_that_was_restored_is_refused",
    ),
    "StoreUnreachable": Provoked(
        "Stop the state store's server.",
        "integration/test_postgres_store.py",
        "test_an_unreachable_server_may_be_retried",
    ),
    "Superseded": Provoked(
        "Stop the process with SIGSTOP, end its sessions in the state store, start a second one, "
        "and let the first continue with SIGCONT.",
        "integration/test_duckdb_destination.py",
        "test_an_older_epoch_is_refused_by_the_file_itself",
    ),
    "TableLocked": Provoked(
        "Hold `LOCK TABLE orders IN ACCESS EXCLUSIVE MODE` in an open transaction, and reset the "
        "table.",
        "integration/test_locked_tables.py",
        "test_other_tables_continue_and_the_session_is_named",
    ),
    "TableNameTaken": Provoked(
        "Stop the destination, so that the stream waits; rename a table, and give its old "
        "name to a new one. The copy of the new table waits for 15 s, and then says so."
    ),
    "TableOfAnotherShard": Provoked(
        "Add a table to the publication of a second shard while both shards run.",
        "integration/test_shards.py",
        "test_a_table_that_comes_into_a_second_publication_stops_there_alone",
    ),
    "TableRewritten": Provoked(
        "Run VACUUM FULL on a table while it is copied.",
        "unit/test_table_sync.py",
        "test_a_chunk_of_a_table_that_is_rewritten_meanwhile_does_not_count_as_copied",
    ),
    "TableWriteFailed": Provoked(
        "Create a table of the same name in the DuckDB file before the pipeline's first start.",
        "integration/test_duckdb_destination.py",
        "test_a_table_that_is_not_ours_is_not_overwritten",
    ),
    "TablesLeft": Provoked(
        "Run `etl-dagster repair` for a table in mode `append`.",
        "integration/test_repair.py",
        "test_the_command_reports_what_differs_and_replaces_that",
    ),
    "ValueNotHeld": Provoked(
        "Set `odd_values: fail`, and write `NaN` into a column of type `numeric(12,2)`.",
        "unit/test_odd_policies.py",
        "test_under_the_fail_policy_a_table_stops_and_names_the_position_but_no_value",
    ),
}


def errors_page() -> str:
    """What to do about each error: a runbook for the operator on call."""
    parts = [
        """# Runbook: errors

Every error has a reason (what went wrong) and a solution (what to do about it). Neither ever
contains a row value or a password. This page is made from the classes in `etl_dagster.errors` and
from the places that raise them. The log, `etl-dagster status` and Dagster show the same reason and
solution; where the cause is known more exactly, the solution there is more exact than here.

To find an error by its text, search for a part of it, or look in
[Troubleshoot by message](messages.md).

"Retried" means that the pipeline tries again by itself, with growing pauses. Any other error stops
the table, or the pipeline, until an operator acts. "How to provoke it" is for a test system: try an
alert, or practise the way back, before you need it.

| error | happens when | retried |
|---|---|---|
"""
    ]
    classes = error_classes()
    for each in classes:
        again = "yes" if each.retryable else ""
        parts.append(f"| {_link(each.__name__)} | {_first(each)} | {again} |\n")
    for each in classes:
        name = each.__name__
        parts.append(f"\n## {name}\n\n{getdoc(each)}\n")
        parts.append(f"\n**What to do.** {_solution(each)}\n")
        parts.append(f"\n**How to provoke it.** {PROVOKED[name]}\n")
        parts.append(_shown(messages().get(name, ())))
    return "".join(parts)


def messages_page() -> str:
    """Every message, in the order of the alphabet, with its error."""
    parts = [
        """# Troubleshoot by message

Messages of errors, as the log, `etl-dagster status`, `etl-dagster doctor` and Dagster show them.
Words in capitals and `...` stand for what differs: names, numbers, positions, and the text of
another program. This page is made from the code. Search it for a part of your message that has no
name or number in it; the error on the right says what to do.

Problems with assets, sensors and runs are in
[Troubleshoot in Dagster](../guides/dagster-troubleshooting.md), those of Meltano's states in
[State in PostgreSQL](../meltano/state-backend.md#when-something-is-wrong).

| message | error |
|---|---|
"""
    ]
    found = {(text, name) for name, texts in messages().items() for text in texts}
    for text, name in sorted(found, key=lambda each: (each[0].strip("`'. ").lower(), each[1])):
        parts.append(f"| {_cell(text)} | [`{name}`](errors.md#{name.lower()}) |\n")
    return "".join(parts)


def error_classes() -> list[type[EtlError]]:
    """Those that are raised: classes with further ones below only gather them."""
    found, todo = [], [EtlError]
    while todo:
        each = todo.pop()
        below = [kind for kind in each.__subclasses__() if kind.__module__ == EtlError.__module__]
        todo += below
        if each is not EtlError and (
            not below or "solution" in vars(each) or each.__name__ in _raised()
        ):
            found.append(each)
    return sorted(found, key=lambda kind: kind.__name__)


def _solution(kind: type[EtlError]) -> str:
    """That of the class; or the one that it makes of what it is told."""
    if "solution" in vars(kind):
        return kind.solution
    return _own_texts().get(kind.__name__, ("", ""))[1] or kind.solution


def _shown(texts: Iterable[str]) -> str:
    lines = [f"- {_cell(text)}\n" for text in texts]
    if not lines:
        return ""
    if len(lines) > 12:
        return f"\n{len(lines)} messages, in [Troubleshoot by message](messages.md).\n"
    return "\n**Messages.**\n\n" + "".join(lines)


def _link(name: str) -> str:
    return f"[`{name}`](#{name.lower()})"


def _first(kind: type) -> str:
    return (getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _cell(text: str) -> str:
    shown = " ".join(text.split())
    for sign in "\\|<*_[":
        shown = shown.replace(sign, f"\\{sign}")
    return shown


@cache
def _raised() -> frozenset[str]:
    """The names that the code calls: of classes, too, which also gather others."""
    return frozenset(
        _called(node)
        for file in _PACKAGE.rglob("*.py")
        if file.name != "errors.py"
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call)
    )


# -- messages in the code ----------------------------------------------------------------------


@cache
def messages() -> Mapping[str, tuple[str, ...]]:
    """The reasons that the code gives each class, by its name."""
    names = {each.__name__ for each in error_classes()}
    found: dict[str, set[str]] = {
        name: {reason} for name, (reason, _) in _own_texts().items() if reason
    }
    for file in sorted(_PACKAGE.rglob("*.py")):
        if "testing" in file.parts or file.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and (name := _called(node)) in names:
                texts = (_text(argument) for argument in node.args)
                if (text := next(filter(None, texts), "")) and len(text.strip(". :")) > 8:
                    found.setdefault(name, set()).add(text)
    return {name: tuple(sorted(texts)) for name, texts in found.items()}


@cache
def _own_texts() -> Mapping[str, tuple[str, str]]:
    """Reason and solution that classes put together themselves, in their `__init__`."""
    tree = ast.parse((_PACKAGE / "errors.py").read_text("utf-8"))
    return {
        kind.name: (_own_reason(call), _own_solution(call))
        for kind in tree.body
        if isinstance(kind, ast.ClassDef)
        for call in ast.walk(kind)
        if isinstance(call, ast.Call) and _called(call) == "__init__"
    }


def _own_reason(call: ast.Call) -> str:
    text = _text(call.args[0]) if call.args else ""
    return text if len(text.strip(". ")) > 8 else ""


def _own_solution(call: ast.Call) -> str:
    found = (_text(each.value) for each in call.keywords if each.arg == "solution")
    return next(found, "")


def _called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _text(node: ast.AST) -> str:
    """A text of the code, with what is filled in later as a word in capitals, or as dots."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return _joined(parts)
        case ast.FormattedValue(value=ast.Name(id=name) | ast.Attribute(attr=name)):
            return name.strip("_").upper()
        case ast.FormattedValue():
            return "..."
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return ""


def _joined(parts: Iterable[ast.AST]) -> str:
    """The parts in a row; what is filled in at the end of a word is left out as dots."""
    text = ""
    for part in parts:
        is_glued = isinstance(part, ast.FormattedValue) and text[-1:].isalnum()
        text += "..." if is_glued else _text(part)
    return text
