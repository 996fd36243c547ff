"""The life of a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from etl_dagster.errors import InvalidState
from etl_dagster.lsn import Lsn
from etl_dagster.model.states import (
    TRANSITIONS,
    Catchup,
    DataSync,
    Errored,
    FinishedCopy,
    Init,
    ManualRetry,
    NoRetry,
    Ready,
    SyncDone,
    SyncWait,
    TableState,
    TimedRetry,
    check_transition,
    is_durable,
    needs_sync,
    state_from_json,
    state_name,
    state_to_json,
)

lsns = st.integers(0, 2**64 - 1).map(Lsn)
retries = (
    st.just(NoRetry())
    | st.just(ManualRetry())
    | st.builds(
        TimedRetry,
        st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
        st.integers(1, 1000),
    )
)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
errored = st.builds(
    Errored,
    st.text(),
    st.text(),
    retries,
    st.none() | moments,
    st.none() | st.integers(0, 2**64 - 1).map(Lsn),
    st.booleans(),
)
#: How to make one of each.
by_kind: dict[type[TableState], st.SearchStrategy[TableState]] = {
    Init: st.just(Init()),
    DataSync: st.just(DataSync()),
    FinishedCopy: st.just(FinishedCopy()),
    SyncWait: st.builds(SyncWait, lsns),
    Catchup: st.builds(Catchup, lsns),
    SyncDone: st.builds(SyncDone, lsns),
    Ready: st.builds(Ready, lsns),
    Errored: errored,
}
states = st.one_of(*by_kind.values())


def test_every_state_has_its_transitions() -> None:
    assert TRANSITIONS.keys() == by_kind.keys()
    assert all(followers <= by_kind.keys() for followers in TRANSITIONS.values())


@given(states)
def test_a_state_survives_json(state: TableState) -> None:
    text = json.dumps(state_to_json(state))

    assert state_from_json(json.loads(text)) == state


@given(states)
def test_the_name_in_json_is_the_name_people_see(state: TableState) -> None:
    assert state_to_json(state)["type"] == state_name(state)


def test_an_errored_state_of_an_earlier_version_stays_the_same_text() -> None:
    """A store compares states as texts where it changes one for another."""
    payload = {
        "type": "errored",
        "reason": "no",
        "solution": "yes",
        "retry": {"kind": "manual_retry"},
    }

    assert state_to_json(state_from_json(payload)) == payload


@pytest.mark.parametrize("payload", [{}, {"type": "resting"}, {"type": None}])
def test_an_unknown_state_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(InvalidState, match="not the name of a table state"):
        state_from_json(payload)


@given(states, errored | st.just(Init()))
def test_a_table_may_fail_or_be_reset_in_any_state(old: TableState, new: TableState) -> None:
    check_transition(old, new)


@given(states)
def test_a_table_may_begin_in_any_state(state: TableState) -> None:
    """A store that is imported, or restored, has no state before the first one."""
    check_transition(None, state)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (Init(), Ready(Lsn(1))),
        (Init(), FinishedCopy()),
        (DataSync(), SyncDone(Lsn(1))),
        (FinishedCopy(), Ready(Lsn(1))),
        (SyncWait(Lsn(1)), Ready(Lsn(1))),
        (SyncWait(Lsn(1)), SyncDone(Lsn(1))),
        (SyncDone(Lsn(1)), DataSync()),
        (Ready(Lsn(1)), DataSync()),
        (Ready(Lsn(1)), SyncDone(Lsn(1))),
        (Errored("a", "b", NoRetry()), Ready(Lsn(1))),
    ],
    ids=lambda state: state_name(state),
)
def test_no_step_of_the_hand_over_can_be_left_out(old: TableState, new: TableState) -> None:
    with pytest.raises(InvalidState, match=f"from {state_name(old)} to {state_name(new)}"):
        check_transition(old, new)


@given(states)
def test_what_is_streamed_or_failed_needs_no_sync_worker(state: TableState) -> None:
    assert needs_sync(state) == (not isinstance(state, SyncDone | Ready | Errored))


@given(states)
def test_only_states_of_the_talk_between_workers_are_not_resumed_from(state: TableState) -> None:
    assert is_durable(state) == (not isinstance(state, SyncWait | Catchup))


class TableLife(RuleBasedStateMachine):
    """Any walk along the allowed transitions, with failures and resets in between."""

    @initialize()
    def begin(self) -> None:
        self.state: TableState = Init()
        self.is_copied = False

    @rule(data=st.data())
    @precondition(lambda self: bool(TRANSITIONS[type(self.state)]))
    def continue_(self, data: st.DataObject) -> None:
        followers = sorted(TRANSITIONS[type(self.state)], key=lambda kind: kind.__name__)
        kind = data.draw(st.sampled_from(followers))
        self._become(data.draw(by_kind[kind]))

    @rule(state=errored)
    def fail(self, state: TableState) -> None:
        self._become(state)

    @rule()
    def reset(self) -> None:
        self._become(Init())

    @rule(data=st.data())
    def try_the_impossible(self, data: st.DataObject) -> None:
        wrong = by_kind.keys() - TRANSITIONS[type(self.state)] - {Init, Errored}
        kind = data.draw(st.sampled_from(sorted(wrong, key=lambda kind: kind.__name__)))
        with pytest.raises(InvalidState):
            check_transition(self.state, data.draw(by_kind[kind]))

    def _become(self, state: TableState) -> None:
        check_transition(self.state, state)
        if isinstance(state, Init):
            self.is_copied = False
        # An error remembers no copy; continuing from it at FinishedCopy is the worker's knowledge.
        if isinstance(state, FinishedCopy):
            self.is_copied = True
        self.state = state_from_json(state_to_json(state))

    @invariant()
    def no_table_is_streamed_that_was_not_copied(self) -> None:
        if isinstance(self.state, SyncWait | Catchup | SyncDone | Ready):
            assert self.is_copied


TestTableLife = TableLife.TestCase
