"""Runs work that may never end, and gives it up after a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest

T = TypeVar("T")


def within(patience_s: float, what: str, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of its own; if it takes longer, the check fails.

    Args:
        what: what took too long, such as "writing chunks from four threads"; or the promise that
            is broken then, such as "a wait ends when something changes".
    """
    [result] = all_within(patience_s, what, [work])
    return result


def all_within(patience_s: float, what: str, works: Iterable[Callable[[], T]]) -> list[T]:
    """As `within`, the results of several pieces of work, which run at once in a thread each."""
    works = list(works)
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def run(number: int, work: Callable[[], T]) -> None:
        try:
            results[number] = work()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(number, work), daemon=True)
        for number, work in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + patience_s
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    if errors:
        raise errors[0]
    if any(thread.is_alive() for thread in threads):
        pytest.fail(
            f"{what}: not within {patience_s} s. Something waits without an end; if it is only "
            "slow, set a larger `patience_s` in the test class"
        )
    return [results[number] for number in range(len(works))]
