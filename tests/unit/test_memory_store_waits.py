"""A thread that waits for changes misses none."""

from __future__ import annotations

import threading

from etl_dagster.model.change_signal import ChangeSignal


def test_a_change_made_between_two_waits_ends_the_second_at_once() -> None:
    changes = ChangeSignal()
    changes.wait(0)
    changes.bump()

    changes.wait(3600)


def test_each_thread_has_seen_only_what_it_waited_for() -> None:
    changes = ChangeSignal()
    changes.bump()
    changes.wait(0)
    ended: list[str] = []

    def first_wait() -> None:
        changes.wait(3600)
        ended.append("at once")

    thread = threading.Thread(target=first_wait)
    thread.start()
    thread.join()

    assert ended == ["at once"]


def test_a_change_ends_the_waits_of_all_threads() -> None:
    changes = ChangeSignal()
    ready = threading.Barrier(5)

    def wait_for_the_next() -> None:
        changes.wait(0)
        ready.wait()
        changes.wait(3600)

    threads = [threading.Thread(target=wait_for_the_next) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    changes.bump()
    for thread in threads:
        thread.join()
