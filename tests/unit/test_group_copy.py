"""A group's copy: the connection that holds the snapshot is never left open."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from etl_dagster.errors import SourceUnreachable
from etl_dagster.pg.encodings import stored_encoding
from etl_dagster.runtime.copying import group_copy
from tests.support.scripted import ScriptedSource, config


class _Connection:
    """One that is open until it is closed."""

    open = 0

    def __init__(self, *_: object, **__: object) -> None:
        type(self).open += 1

    def close(self) -> None:
        type(self).open -= 1

    def cancel(self) -> None: ...


def test_a_question_that_fails_leaves_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> None:
        raise SourceUnreachable("away")

    monkeypatch.setattr(group_copy, "CopyConnection", _Connection)
    nothing: Any = None
    copy = group_copy.GroupCopy(
        config(),
        nothing,
        ScriptedSource({stored_encoding: away}),
        {},
        {},
        {},
        snapshot_name="snapshot",
        stop=threading.Event(),
        leave_out=lambda table_id, error: None,
        memory=nothing,
    )

    with pytest.raises(SourceUnreachable):
        copy.run()

    assert _Connection.open == 0
