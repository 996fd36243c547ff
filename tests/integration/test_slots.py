"""Replication slots have names that a whole server shares, and streams that may not begin."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from etl_dagster.cli.checks import require_all
from etl_dagster.config import PipelineConfig
from etl_dagster.errors import SlotMissing, SlotOfAnotherDatabase
from etl_dagster.lsn import LSN_ZERO
from etl_dagster.protocol.session import ReplicationSession
from etl_dagster.runtime.slot import drop_pipeline_slots, prepare_apply_slot
from etl_dagster.source.control import SourceControl
from etl_dagster.source.slots import apply_slot_name
from etl_dagster.source.stream import ReplicationStream
from etl_dagster.stores.memory import MemoryStore
from tests.support.database import Database

MakeConfig = Callable[..., PipelineConfig]


@pytest.fixture
def config(newest_database: Database, make_config: MakeConfig) -> PipelineConfig:
    newest_database.execute(
        "create table orders (id int primary key)", "create publication etl_pub for table orders"
    )
    return make_config(newest_database)


@pytest.fixture
def other(newest_database: Database, config: PipelineConfig) -> Iterator[Database]:
    """A database of the same server, with the slot of a pipeline that has the same name."""
    with Database.create(newest_database.server) as other:
        name = apply_slot_name(config.pipeline)
        other.query("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
        yield other


@pytest.fixture
def control(config: PipelineConfig) -> Iterator[SourceControl]:
    control = SourceControl(config.source, application_name="test")
    yield control
    control.close()


def test_a_slot_of_another_database_is_refused(
    config: PipelineConfig, other: Database, control: SourceControl
) -> None:
    """Two databases of a server, each with a pipeline of the name that `init` proposes."""
    with pytest.raises(SlotOfAnotherDatabase, match=other.name) as refused:
        require_all(config)
    assert "another name" in refused.value.solution

    with pytest.raises(SlotOfAnotherDatabase):
        prepare_apply_slot(MemoryStore(), control, config)


def test_a_slot_of_another_database_is_not_dropped(
    config: PipelineConfig, other: Database, control: SourceControl
) -> None:
    """Postgres would drop it, and the other pipeline would have to copy everything again."""
    assert drop_pipeline_slots(control, config) == []

    assert apply_slot_name(config.pipeline) in other.slots()


def test_a_stream_that_was_not_opened_can_be_closed(config: PipelineConfig) -> None:
    """Otherwise the first error would be hidden by the one that follows from it."""
    stream = ReplicationStream(
        config.source, "not_there", ReplicationSession(), LSN_ZERO, application_name="test"
    )
    with pytest.raises(SlotMissing):
        stream.open()

    stream.close()
