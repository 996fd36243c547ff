"""Runs what may never end, and gives up on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest

T = TypeVar("T")


def within(patience_s: float, what: str, work: Callable[[], T]) -> T:
    """The result of `work`, which runs in a thread of its own; a failed check when it takes longer.

    Args:
        what: the promise that isn't kept then, as in "a wait ends when something changes".
    """
    [result] = all_within(patience_s, what, [work])
    return result


def all_within(patience_s: float, what: str, works: Iterable[Callable[[], T]]) -> list[T]:
    """The results of work that is done at the same time, one thread for each, as `within`."""
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
        pytest.fail(f"{what}: not so within {patience_s} s (patience_s)")
    return [results[number] for number in range(len(works))]
