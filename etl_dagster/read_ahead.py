"""Reads pieces of something in a few threads, ahead of the one that takes what is made of them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, Generic, Protocol, TypeVar

from etl_dagster.threads import Background

_TURN_S: Final = 0.2

_Piece = TypeVar("_Piece")
_Read = TypeVar("_Read", contravariant=True)
_Gives = TypeVar("_Gives", covariant=True)
_Made = TypeVar("_Made")


class Reader(Protocol[_Read, _Gives]):
    """Reads pieces, each as a whole. Belongs to one thread, but for `cancel`."""

    def read(self, piece: _Read, /) -> Generator[_Gives, None, None]:
        """What is made of the piece, a part at a time."""
        ...

    def cancel(self) -> None:
        """Have the server give up what is being read, if anything is. From any thread."""
        ...


class ReadAhead(Generic[_Piece, _Made]):
    """Reads every piece once, each in one of a few threads; for one user, and one time.

    Args:
        pieces: what there is to read, in the order in which it is begun.
        opened: called by each thread for a reader of its own, often with a connection.
        count: of threads; not more than there are pieces.
        name: of the threads.
        require_wanted: called by the user's thread now and then; what it raises ends the reading.
        is_given_up: whether threads that don't end are left alone at the end, since a server that
            doesn't answer doesn't answer a request to cancel, either.
    """

    def __init__(
        self,
        pieces: Sequence[_Piece],
        opened: Callable[[], AbstractContextManager[Reader[_Piece, _Made]]],
        *,
        count: int,
        name: str,
        require_wanted: Callable[[], None],
        is_given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._opened = opened
        self._require_wanted = require_wanted
        self._is_given_up = is_given_up
        self._todo: queue.SimpleQueue[_Piece] = queue.SimpleQueue()
        for piece in pieces:
            self._todo.put(piece)
        count = min(count, len(pieces))
        #: None: a thread has read all there was. Bounded, for what waits here takes memory.
        self._arrived: queue.Queue[_Made | BaseException | None] = queue.Queue(2 * count)
        self._over = threading.Event()
        self._readers: set[Reader[_Piece, _Made]] = set()
        #: A reader isn't closed while it is told to cancel.
        self._readers_lock = threading.Lock()
        self._threads = [Background(self._work, name=name) for _ in range(count)]

    def made(self) -> Iterator[_Made]:
        """What is made of the pieces, in any order; no thread reads any more when it ends.

        Raises:
            BaseException: what was raised in a thread, or by `require_wanted`.
        """
        try:
            for thread in self._threads:
                thread.start()
            left = len(self._threads)
            while left:
                self._require_wanted()
                try:
                    item = self._arrived.get(timeout=_TURN_S)
                except queue.Empty:
                    continue
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield item
        finally:
            self._end()

    def _end(self) -> None:
        """Wait until no thread reads any more; what is under way is canceled."""
        self._over.set()
        while alive := [thread for thread in self._threads if thread.is_alive()]:
            # Each time: one that was about to ask the server has asked it by now.
            with self._readers_lock:
                for reader in self._readers:
                    with contextlib.suppress(Exception):
                        reader.cancel()
            for thread in alive:
                thread.join(_TURN_S)
            if self._is_given_up():
                return

    def _work(self) -> None:
        try:
            with self._opened() as reader:
                self._read(reader)
        except BaseException as error:
            self._put(error)
        else:
            self._put(None)

    def _read(self, reader: Reader[_Piece, _Made]) -> None:
        with self._readers_lock:
            self._readers.add(reader)
        try:
            while not self._over.is_set():
                try:
                    piece = self._todo.get_nowait()
                except queue.Empty:
                    return
                with contextlib.closing(reader.read(piece)) as parts:
                    for made in parts:
                        self._put(made)
                        if self._over.is_set():
                            return
        finally:
            with self._readers_lock:
                self._readers.discard(reader)

    def _put(self, item: _Made | BaseException | None) -> None:
        while not self._over.is_set():
            with contextlib.suppress(queue.Full):
                self._arrived.put(item, timeout=_TURN_S)
                return
