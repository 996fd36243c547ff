"""Refuses a destination that isn't the one that the pipeline has written, before it is written.

What the state store says of tables is true of one destination at one time. Of another one, or of
an older copy, it would be wrong without a word: rows that the store takes for copied and streamed
are not there, and would never come.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

from etl_dagster.config import PipelineConfig
from etl_dagster.errors import (
    CopyMissing,
    DestinationReplaced,
    DestinationRestored,
    DestinationShared,
    SourceReplaced,
    SourceRestored,
    StoreRestored,
)
from etl_dagster.lsn import LSN_MAX, LSN_ZERO
from etl_dagster.model.coordination import CopyPlan
from etl_dagster.model.destination import Destination
from etl_dagster.model.events import EventBatch
from etl_dagster.model.identity import (
    DestinationMark,
    KeepsMark,
    KnownDestination,
    RemembersDestination,
)
from etl_dagster.model.schema import TableId
from etl_dagster.model.states import (
    Catchup,
    FinishedCopy,
    Init,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
)
from etl_dagster.model.stores import ApplyWorker, CoordinatingStore
from etl_dagster.runtime.sharding import known_to_all, of_shards_left_out
from etl_dagster.runtime.tables.representation import given

#: Nothing that one table is at fault of, and nothing that waiting helps against.
MISMATCHES = (
    DestinationReplaced,
    DestinationRestored,
    StoreRestored,
    SourceReplaced,
    SourceRestored,
)

_log = logging.getLogger(__name__)

#: In these states the destination has a complete copy of the table.
_COPIED = (FinishedCopy, SyncWait, Catchup, SyncDone, Ready)
#: So many tables are named in an error.
_NAMED = 3


def place_of(destination: Destination, config: PipelineConfig) -> str:
    """Where the destination is, for people: what it says itself, else its section."""
    place = getattr(destination, "place", None)
    return place if isinstance(place, str) and place else config.destination.place


def marking(destination: Destination) -> KeepsMark | None:
    """The destination, where it keeps a mark. Also one in a wrapper that passes calls on."""
    if callable(getattr(destination, "read_mark", None)):
        return destination  # type: ignore[return-value]
    return None


class Belonging:
    """Compares a pipeline's destination with what its store knows.

    Args:
        destination: need not be started.
    """

    def __init__(
        self, config: PipelineConfig, store: CoordinatingStore, destination: Destination
    ) -> None:
        self._config = config = given(config, destination)
        self._store = store
        self._memory = store if isinstance(store, RemembersDestination) else None
        self._destination = destination
        self._marking = marking(destination)
        self._place = place_of(destination, config)
        #: What `require` found, where the pipeline continues with what is there.
        self.continued: DestinationMark | None = None

    # -- what is found -------------------------------------------------------------------------

    def require(self) -> None:
        """Refuse a destination that doesn't belong to the store; changes nothing.

        Raises:
            DestinationShared: another pipeline has written to it.
            DestinationReplaced: it is another one, or what was written is gone.
            DestinationRestored: it is an older copy of itself.
            CopyMissing: it lacks the copy of a table.
            StoreRestored: the store is older than the destination, or another one.
            EtlError: store or destination can't be read.
        """
        # The store first: what it knows was committed before, so the mark can only be newer.
        known = self._known()
        states = self._store.get_table_replication_states()
        mark = self._read_mark()
        if all(isinstance(state, Init) for state in states.values()):
            return  # nothing is claimed of any destination
        self._require_known(known, mark)
        if mark is not None:
            self._require_store(mark)
        self._require_copies(states)
        self.continued = mark

    def require_known(self) -> None:
        """Refuse a destination that isn't the one on record, even if nothing is claimed of it.

        For a copy: it has no say in which destination the pipeline writes.

        Raises:
            DestinationShared: another pipeline has written to it.
            DestinationReplaced: it is another one, or what was written is gone.
            DestinationRestored: it is an older copy of itself.
        """
        known = self._known()
        self._require_known(known, self._read_mark())

    def missing_copies(self, table_ids: Collection[TableId]) -> dict[TableId, CopyMissing]:
        """Those of the tables, all of them copied, whose copy is not at this destination."""
        states = self._store.get_table_replication_states()
        missing = self._missing({t: state for t, state in states.items() if t in table_ids})
        return {table_id: self._missing_error([table_id]) for table_id in missing}

    def has_finished(self, table_id: TableId, plan: CopyPlan, *, is_complete: bool) -> bool:
        """Whether a copy can be resumed: what the store takes for finished is there.

        Args:
            is_complete: whether the store takes the whole copy for finished.
        """
        if self._marking is None:
            return True
        copy = self._marking.held_copies([table_id]).get(table_id)
        if copy is None or copy.copy_id != plan.copy_id:
            return not plan.finished and not is_complete
        return copy.is_complete or (not is_complete and plan.finished.keys() <= copy.chunks)

    def _read_mark(self) -> DestinationMark | None:
        """What the destination says of itself; another pipeline's is refused."""
        if self._marking is None:
            return None
        mark = self._marking.read_mark(self._config.pipeline)
        sharding = self._config.sharding
        shards = () if sharding is None else sharding.other_pipelines
        strangers = [] if mark is None else [each for each in mark.others if each not in shards]
        if strangers:
            others = ", ".join(map(repr, strangers))
            raise DestinationShared(
                f"{self._place} holds the tables of the pipeline {others}, "
                f"and can't hold those of {self._config.pipeline!r} as well",
                solution=of_shards_left_out(self._config, strangers),
            )
        return mark

    def _known(self) -> KnownDestination | None:
        return None if self._memory is None else self._memory.get_known_destination()

    def _require_known(self, known: KnownDestination | None, mark: DestinationMark | None) -> None:
        if known is None:
            return
        self._require_kind(known)
        if known.identity and self._marking is not None:
            self._require_same(known, mark)

    def _require_kind(self, known: KnownDestination) -> None:
        kind = self._config.destination.type
        if known.type != kind:
            raise DestinationReplaced(
                f"the pipeline {self._config.pipeline!r} has written to "
                f"{_named(known.type, known.place)}; the configuration names "
                f"{_named(kind, self._place)}"
            )
        if known.place != self._place and not (known.identity and self._marking is not None):
            raise DestinationReplaced(
                f"the pipeline {self._config.pipeline!r} has written to {known.place}; "
                f"the configuration names {self._place}"
            )

    def _require_same(self, known: KnownDestination, mark: DestinationMark | None) -> None:
        pipeline = self._config.pipeline
        where = f"; it has written to {known.place}" if known.place != self._place else ""
        if mark is None:
            raise DestinationReplaced(
                f"{self._place} holds nothing of the pipeline {pipeline!r}: it is empty or "
                f"missing{where}"
            )
        if mark.identity != known.identity:
            raise DestinationReplaced(
                f"{self._place} is not the destination that the pipeline {pipeline!r} has "
                f"written{where}"
            )
        if mark.revision < known.revision or mark.epoch < known.epoch:
            raise DestinationRestored(
                f"{self._place} is an older copy of the destination: of the pipeline "
                f"{pipeline!r} it has {mark.revision} batches, up to {mark.durable_lsn}, and "
                f"{known.revision} were written"
            )

    def _require_store(self, mark: DestinationMark) -> None:
        epoch = self._store.current_epoch()
        progress = self._store.get_replication_progress(ApplyWorker()) or LSN_ZERO
        # A store of three contracts forgets epochs with its process.
        if self._memory is not None and 0 < epoch < mark.epoch:
            raise StoreRestored(
                f"{self._place} was written by a process that the state store has no record of "
                f"(epoch {mark.epoch}, the store's newest is {epoch})"
            )
        if progress < mark.stored_lsn:
            raise StoreRestored(
                f"the state store was at {mark.stored_lsn} when {self._place} was written, and is "
                f"at {progress} now"
            )

    def _require_copies(self, states: Mapping[TableId, TableState]) -> None:
        missing = self._missing(states)
        if missing:
            # A new copy may have been asked for, and begun, since the states were read.
            self._store.load_table_replication_states()
            now = self._store.get_table_replication_states()
            missing = self._missing({t: states[t] for t in missing if now.get(t) == states[t]})
        if missing:
            raise self._missing_error(missing)

    def _missing(self, states: Mapping[TableId, TableState]) -> list[TableId]:
        """The tables that are copied by their state, and not at the destination."""
        copied = [table_id for table_id, state in states.items() if isinstance(state, _COPIED)]
        if self._marking is None or not copied:
            return []
        expected = {} if self._memory is None else self._memory.get_copy_ids()
        held = self._marking.held_copies(copied)

        def is_held(table_id: TableId) -> bool:
            copy = held.get(table_id)
            if copy is None or not copy.is_complete:
                return False
            return expected.get(table_id, copy.copy_id) == copy.copy_id

        return [table_id for table_id in copied if not is_held(table_id)]

    def _missing_error(self, table_ids: Sequence[TableId]) -> CopyMissing:
        return CopyMissing(
            f"{self._place} does not have the complete copy of {self._names(table_ids)}, which "
            "the state store records as copied"
        )

    def _names(self, table_ids: Sequence[TableId]) -> str:
        found = []
        for table_id in table_ids[:_NAMED]:
            schema = self._store.get_table_schema(table_id, LSN_MAX)
            found.append(f"table {table_id}" if schema is None else schema.name)
        more = len(table_ids) - len(found)
        return ", ".join(found) + (f" and {more} more" if more else "")

    # -- what is remembered ----------------------------------------------------------------------

    def fence(self, epoch: int) -> EventBatch:
        """The first batch of an epoch, without changes: it refuses all older ones from then on.

        After `require`: it carries on what the mark says, unless everything is copied again.
        """
        mark = self.continued
        progress = self._store.get_replication_progress(ApplyWorker())
        return EventBatch(
            {},
            commit_end_lsn=None if mark is None else mark.durable_lsn,
            epoch=epoch,
            pipeline=self._config.pipeline,
            stored_lsn=progress if mark is not None and progress is not None else LSN_ZERO,
            last_begin=None if mark is None else mark.last_begin,
        )

    def remember(self) -> None:
        """Keep the destination as the pipeline's, with its mark; once it is started."""
        if self._memory is None:
            return
        known = KnownDestination(self._config.destination.type, self._place)
        if self._marking is not None:
            mark = self._marking.read_mark(self._config.pipeline)
            if mark is not None:
                known = known.at(mark)
        before = self._memory.get_known_destination()
        if before is not None and (before.type, before.place) != (known.type, known.place):
            _log.info("the pipeline writes to %s from now on", known.place)
        if before != known:
            self._memory.store_known_destination(known)


def start_destination(
    config: PipelineConfig, store: CoordinatingStore, destination: Destination
) -> None:
    """Start a destination for a copy in a process of its own, if it is the pipeline's.

    Raises:
        EtlError: as `Belonging.require`, or what the destination can't be started for.
    """
    belonging = Belonging(config, store, destination)
    belonging.require_known()
    belonging.require()
    destination.startup(known_to_all(config, store))
    memory = store if isinstance(store, RemembersDestination) else None
    if memory is not None and memory.get_known_destination() is None:
        belonging.remember()


def _named(kind: str, place: str) -> str:
    """A destination for people; one that is nowhere else has its type as its place."""
    return place if place == kind else f"{kind} {place}"
