"""That a table was moved here from another shard, until the stream has taken it over.

While it catches up, its worker reads the publication that it was moved from as well: the changes
before the move are published by that one, those since by this shard's own. A note keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import MoveNotFinished, TableOfAnotherShard
from etl_dagster.model.coordination import Notes
from etl_dagster.model.schema import TableId
from etl_dagster.model.stores import CoordinatingStore
from etl_dagster.runtime.sharding import held_by_others, of_another


@dataclass(frozen=True, slots=True)
class Moved:
    """A move, for as long as the table is as the copy of then left it."""

    copy_id: str
    #: The shard that had the table, and its publication.
    shard: str
    publication: str


def note_move(store: Notes, table_id: TableId, moved: Moved) -> None:
    """Keep it, before the table has a state here."""
    store.put_note(_key(table_id), {"copy": moved.copy_id, "of": [moved.shard, moved.publication]})


def find_move(store: CoordinatingStore, table_id: TableId) -> Moved | None:
    """The move that the table has still to catch up after; a new copy needs nothing of it."""
    note = store.get_note(_key(table_id)) or {}
    plan = store.get_copy_plan(table_id) if note else None
    if plan is None or plan.copy_id != note["copy"]:
        return None
    return Moved(note["copy"], *note["of"])


def forget_move(store: Notes, table_id: TableId) -> None:
    """The stream has taken the table over."""
    if store.get_note(_key(table_id)):
        store.put_note(_key(table_id), {})


def require_let_go(
    config: PipelineConfig, store: CoordinatingStore, table_id: TableId, name: str
) -> None:
    """See that no other shard has the table, before its worker writes it.

    Raises:
        MoveNotFinished: it was moved here from the one that has it.
        TableOfAnotherShard: another one has it.
        EtlError: the store can't be asked.
    """
    other = held_by_others(config, store, [table_id]).get(table_id)
    if other is not None:
        raise held_error(config, store, table_id, name, other)


def held_error(
    config: PipelineConfig, store: CoordinatingStore, table_id: TableId, name: str, other: str
) -> MoveNotFinished | TableOfAnotherShard:
    """Why this shard doesn't begin with a table that the other one has."""
    moved = find_move(store, table_id)
    if moved is not None and moved.shard == other:
        assert config.sharding is not None
        return MoveNotFinished(name, other, config.sharding.name)
    return of_another(config, name, other)


def _key(table_id: TableId) -> str:
    return f"moved:{table_id}"
