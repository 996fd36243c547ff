"""Ports of the loopback address for servers that are started here."""

from __future__ import annotations

import random
import re
import socket
from pathlib import Path

HOST = "127.0.0.1"

#: Linux takes a port for each outgoing connection from this range.
_RANGE_OF_THE_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST, _HIGHEST = 15_000, 32_000
_TRIES = 100


def is_port_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback address on which no process listens now.

    It stays free until the caller listens, except for another caller that picks the same number at
    random. A port that the kernel picks would not: it comes from the range that outgoing
    connections use, and any process may open one before the caller listens.
    """
    highest = min(_HIGHEST, _lowest_of_the_kernel() - 1)
    if highest > _LOWEST:
        # A generator of its own: test suites seed the common one, the same in each process.
        choice = random.SystemRandom()
        for _ in range(_TRIES):
            port = choice.randint(_LOWEST, highest)
            if is_port_free(port):
                return port
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        picked: int = listener.getsockname()[1]
    return picked


def _lowest_of_the_kernel() -> int:
    """Source: ip(7), "ip_local_port_range". Other systems begin at 49152 (RFC 6335)."""
    try:
        found = re.match(r"\d+", _RANGE_OF_THE_KERNEL.read_text("ascii"))
    except OSError:
        return 49_152
    return int(found[0]) if found else 49_152
