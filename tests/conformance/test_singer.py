"""A Singer target keeps what a destination promises, as far as a target can."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from etl_dagster.destinations.singer import SingerDestination
from etl_dagster.destinations.singer.streams import stream_name
from etl_dagster.model.destination import Capabilities, Destination
from etl_dagster.model.json_values import row_from_json
from etl_dagster.model.modes import ADDED_COLUMNS
from etl_dagster.model.schema import TableSchema
from etl_dagster.testing import DestinationSuite
from etl_dagster.testing.changes import ORDERS, Row, chunk, insert, order, truncate
from etl_dagster.testing.copying import CopyChecks
from etl_dagster.testing.keeping import ModeChecks
from etl_dagster.testing.subject import DestinationHooks, Subject
from tests.support.singer_target import Tables, scripted


class SingerHooks(DestinationHooks):
    #: Of the target.
    config: ClassVar[dict[str, Any]] = {}
    settings: ClassVar[dict[str, Any]] = {}

    def make_destination(self, folder: Path) -> SingerDestination:
        self.tables = Tables(folder)
        made: SingerDestination = scripted(folder, self.config, **self.settings)
        return made

    def read_rows(self, destination: Destination, schema: TableSchema) -> list[Row]:
        rows = []
        for record in self.tables.records(stream_name("{schema}-{table}", schema)):
            odd = json.loads(record["_sdc_odd_values"] or "{}")
            kept = {c.name: c for c in schema.columns}
            added = {n: record[n] for n in ADDED_COLUMNS[schema.mode] if n in record}
            if schema.mode == "soft_delete":
                added = {"_etl_deleted_at": record["_sdc_deleted_at"]}
            if added.get("_etl_unchanged"):
                added["_etl_unchanged"] = json.loads(added["_etl_unchanged"])
            row = {name: value for name, value in record.items() if name in kept}
            # What JSON can't represent is sent next to the row.
            row |= {n: text for n, text in odd.items() if _is_held(kept[n].type_oid)}
            rows.append(row_from_json(schema.columns, row) | added)
        return each_once(rows) if schema.mode == "append" else rows

    def table_exists(self, destination: Destination, schema: TableSchema) -> bool:
        return stream_name("{schema}-{table}", schema) in self.tables.streams()


def each_once(rows: list[Row]) -> list[Row]:
    """A log without what came again, as the guide has it removed."""
    found: dict[Any, Row] = {}
    for number, row in enumerate(rows):
        place = (row["_etl_commit_lsn"], row["_etl_ordinal"])
        found.setdefault((number, "copy") if row["_etl_op"] == "copy" else place, row)
    return list(found.values())


def _is_held(type_oid: int) -> bool:
    """Whether NaN and the infinities are values of the type's columns elsewhere."""
    return type_oid in (700, 701, 1082, 1114, 1184)


class TestSingerDestination(SingerHooks, DestinationSuite):
    """A target that answers each STATE, and keeps what a record leaves out."""

    config: ClassVar = {"states": "at_once", "merge": True}
    settings: ClassVar = {"unchanged": "omit", "flush_after_seconds": 60}

    # Of this target, deleted rows are gone: `TestTargetThatMarks` marks them.
    def capabilities(self, destination: Destination) -> Capabilities:
        return replace(destination.capabilities, modes=frozenset({"mirror", "append"}))

    # Without a key, a target can't find the row of an update or a delete: the table stops.
    test_of_several_equal_rows_one_is_deleted_for_each_delete = None
    test_an_update_without_a_key_replaces_one_equal_row = None
    test_a_row_without_a_key_is_found_by_its_parts = None
    test_random_changes_end_in_what_the_source_has = None
    # A target isn't asked for values: that they are unknown, test_singer_lines says.
    test_an_unchanged_value_is_the_last_one_logged_or_said_to_be_unknown = None
    # A record of the new key alone would lose the value: the table stops.
    test_an_unchanged_value_follows_its_row_to_another_key = None


class TestTargetThatMarks(SingerHooks, ModeChecks):
    """A target that marks deleted rows, as those of the SDK do unless they are told otherwise."""

    config: ClassVar = {"states": "at_once", "merge": True, "hard_delete": False}
    settings: ClassVar = {"unchanged": "omit", "flush_after_seconds": 60}

    def capabilities(self, destination: Destination) -> Capabilities:
        return replace(destination.capabilities, modes=frozenset({"mirror", "soft_delete"}))

    # A record of the new key alone would lose the value: the table stops.
    test_a_key_that_its_row_has_left_is_marked = None
    # By ACTIVATE_VERSION, with a time of the target's own.
    test_a_truncate_marks_the_rows_that_are_there = None
    test_a_new_copy_marks_the_rows_that_it_lacks = None

    def test_the_target_marks_rows_that_are_truncated_or_missing_from_a_copy(
        self, subject: Subject
    ) -> None:
        table = replace(ORDERS, mode="soft_delete")
        subject.copy(table, [order(1), order(2)], replay_from=50)
        subject.write(truncate(table), insert(table, **order(3)))
        subject.write_rows(table, chunk("copy-2", 0, table, [order(4)], replay_from=5000))
        subject.end_copy(table, copy_id="copy-2", replay_from=5000)

        marks = {row["id"]: row["_etl_deleted_at"] is not None for row in subject.kept(table)}
        assert marks == {1: True, 2: True, 3: True, 4: False}


class TestTargetThatWritesInTheEnd(SingerHooks, CopyChecks):
    """As most targets: what is in its memory is written when its input ends, or it is full."""

    config: ClassVar = {"states": "by_stream", "batch_size": 2, "merge": True}
    settings: ClassVar = {"unchanged": "omit"}
