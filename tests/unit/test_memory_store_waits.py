"""A thread that waits for changes misses none."""

from __future__ import annotations

import threading

from etl_dagster.model.change_signal import ChangeSignal
from tests.support.waiting import PATIENCE_S


def test_a_change_made_between_two_waits_ends_the_second_at_once() -> None:
    changes = ChangeSignal()
    ended = threading.Event()

    def wait_twice() -> None:
        changes.wait(0)
        changes.bump()
        changes.wait(3600)
        ended.set()

    threading.Thread(target=wait_twice, daemon=True).start()

    assert ended.wait(PATIENCE_S)


def test_each_thread_has_seen_only_what_it_waited_for() -> None:
    changes = ChangeSignal()
    changes.bump()
    changes.wait(0)
    ended = threading.Event()

    def first_wait() -> None:
        changes.wait(3600)
        ended.set()

    threading.Thread(target=first_wait, daemon=True).start()

    assert ended.wait(PATIENCE_S)


def test_a_change_ends_the_waits_of_all_threads() -> None:
    changes = ChangeSignal()
    ready = threading.Barrier(5)

    def wait_for_the_next() -> None:
        changes.wait(0)
        ready.wait()
        changes.wait(3600)

    threads = [threading.Thread(target=wait_for_the_next, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    changes.bump()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert not any(thread.is_alive() for thread in threads)
