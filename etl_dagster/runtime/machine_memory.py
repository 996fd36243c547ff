"""How much memory this process may have, and how much it has."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
#: cgroup v1 says about this where nothing is limited.
_UNLIMITED: Final = 1 << 62


def memory_limit(root: Path = _ROOT) -> int | None:
    """Bytes: the least limit of the process's cgroups, else the machine's memory.

    None where neither is known.

    Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.max) and cgroup-v1/memory.rst.
    """
    limits = [*_cgroup_limits(root), *_physical(root)]
    return min(limits, default=None)


def _cgroup_limits(root: Path) -> list[int]:
    """Limits of the process's cgroups and of those around them, of either version.

    A container mostly sees its own cgroup as the root of the file system, under whatever path its
    host has: folders that aren't there are passed over.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    folders = [(root / "sys/fs/cgroup", "memory.max")]
    folders += [(root / "sys/fs/cgroup/memory", "memory.limit_in_bytes")]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory") or "memory" in controllers.split(","):
            top, name = folders[1] if controllers else folders[0]
            inside = top / path.lstrip("/")
            folders += [(each, name) for each in (inside, *inside.parents) if top in each.parents]
    found = []
    for folder, name in folders:
        # It is `max` in version 2 where nothing is limited.
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / name).read_text())
            if 0 < limit < _UNLIMITED:
                found.append(limit)
    return found


def _physical(root: Path) -> list[int]:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return [int(line.split()[1]) * 1024]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    return []


def resident_bytes() -> int | None:
    """The process's resident set; None where the system doesn't tell it like Linux.

    Source: proc(5), /proc/pid/statm.
    """
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def give_back() -> None:
    """Have the allocators give the system what is free."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is not None:
        pyarrow.default_memory_pool().release_unused()
    # Of the GNU C library.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
