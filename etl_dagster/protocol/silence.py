"""When a server that sends nothing is asked whether it is there, and when it is given up."""

from __future__ import annotations

from enum import Enum, auto


class Silence(Enum):
    """What is to be done about it now."""

    NOTHING = auto()
    #: Ask for a keepalive, which a server sends at once.
    ASK = auto()
    #: It was asked, and didn't answer in time.
    GIVE_UP = auto()


class SilenceWatch:
    """As a standby of Postgres does it with its wal_receiver_timeout.

    After half of the timeout without a byte the server is asked for a keepalive; if that doesn't
    come in the other half, the connection leads nowhere, although it is open. The time in which
    the reader doesn't read counts for the question only: what came meanwhile is read first.

    Args:
        timeout_s: 0 watches nothing.
        now_s: by a clock that only grows.
    """

    def __init__(self, timeout_s: float, now_s: float) -> None:
        self.timeout_s = timeout_s
        self._heard_at = now_s
        self._asked_at: float | None = None

    def heard(self, now_s: float) -> None:
        """Something came."""
        self._heard_at = now_s
        self._asked_at = None

    def nothing_came(self, now_s: float) -> Silence:
        """A read found nothing; each question is wanted once."""
        half_s = self.timeout_s / 2
        if not half_s:
            return Silence.NOTHING
        if self._asked_at is None:
            if now_s - self._heard_at < half_s:
                return Silence.NOTHING
            self._asked_at = now_s
            return Silence.ASK
        return Silence.GIVE_UP if now_s - self._asked_at >= half_s else Silence.NOTHING
