"""Machines of a test's own: processes that share nothing with the test but a network.

Each has a network namespace with one other end, the test's address, on which servers are offered to
it; a folder of its own, in which it works; and a name. Of the other machines' folders and of the
test's it sees nothing. That takes root's rights on Linux. Elsewhere they are plain processes, which
have a folder each (`WHY_PLAIN`).
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.support.proxy import Proxy

_ROOT = Path(__file__).parents[2]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)


def _why_plain() -> str | None:
    if sys.platform != "linux" or os.geteuid() != 0:
        return "only root makes network namespaces, on Linux"
    for program in ("ip", "unshare", "mount"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    name = f"etl-{secrets.token_hex(4)}"
    try:
        _run("ip", "netns", "add", name)
        try:
            _run("ip", "link", "add", name[:12], "type", "veth", "peer", "eth0", "netns", name)
            _run("ip", "netns", "exec", name, "unshare", "--uts", "true")
        finally:
            _run("ip", "netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"this system makes no network namespaces: {error.stderr.strip()}"
    return None


#: Why machines are plain processes here; None where they are not.
WHY_PLAIN = _why_plain()


@dataclass(frozen=True)
class Machine:
    """Where processes of a test run."""

    name: str
    #: Their working directory, and where their temporary files are.
    folder: Path
    #: Its network namespace; None where there are none.
    namespace: str | None = None
    #: Folders that are empty there.
    hidden: Sequence[Path] = ()

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], output: IO[bytes] | int
    ) -> subprocess.Popen[bytes]:
        """A process in a session of its own, whose group ID is its process ID."""
        return subprocess.Popen(
            [*self._inside(), *command],
            cwd=self.folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(self.folder), str(_ROOT)]),
                "DAGSTER_HOME": str(self.folder),
                "HOME": str(self.folder),
                "TMPDIR": str(self.folder),
                **environment,
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _inside(self) -> list[str]:
        """What each command begins with; each program replaces the one before it."""
        if self.namespace is None:
            return []
        steps = [f"hostname {self.name}"]
        # `ip netns exec` has made a mount namespace, which ends with the process.
        steps += [f"mount -t tmpfs none {shlex.quote(str(each))}" for each in self.hidden]
        script = " && ".join([*steps, 'exec "$@"'])
        inside = ["ip", "netns", "exec", self.namespace, "unshare", "--uts"]
        return [*inside, "sh", "-c", script, "sh"]


@dataclass
class Machines:
    """Some machines, and how they reach the servers of the test's own."""

    #: The test's address as the machines have it. The test reaches it, too.
    host: str
    machines: list[Machine] = field(default_factory=list)
    #: By the port behind it.
    _proxies: dict[str, Proxy] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def dsn(self, dsn: str) -> str:
        """The DSN of a Postgres of the test's, as it is reached from everywhere."""
        if WHY_PLAIN is not None:
            return dsn
        port = str(conninfo_to_dict(dsn)["port"])
        if port not in self._proxies:
            self._proxies[port] = self._stack.enter_context(Proxy(dsn, host=self.host))
        through = conninfo_to_dict(self._proxies[port].dsn)
        return make_conninfo(dsn, host=self.host, port=through["port"])


@contextmanager
def machines(folder: Path, count: int, *, hidden: Sequence[Path] = ()) -> Iterator[Machines]:
    """So many machines, each with a folder in `folder`.

    Args:
        hidden: folders that none of them sees.
    """
    with ExitStack() as stack:
        folders = [folder / f"machine-{number}" for number in range(count)]
        for each in folders:
            each.mkdir()
        if WHY_PLAIN is not None:
            plain = [Machine(each.name, each) for each in folders]
            yield Machines("127.0.0.1", plain, _stack=stack)
            return
        # Addresses for tests of networks (RFC 2544); a run picks 256 of them.
        network = f"198.{18 + secrets.randbelow(2)}.{secrets.randbelow(256)}"
        found = Machines(f"{network}.1", _stack=stack)
        for number, own in enumerate(folders):
            name = f"etl-{secrets.token_hex(4)}"
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
            address, link = f"{network}.{number + 2}", name[:12]
            _run("ip", "link", "add", link, "type", "veth", "peer", "eth0", "netns", name)
            _run("ip", "addr", "add", found.host, "peer", address, "dev", link)
            _run("ip", "link", "set", link, "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            _run("ip", "-n", name, "addr", "add", address, "peer", found.host, "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            unseen = [*hidden, *(each for each in folders if each != own)]
            found.machines.append(Machine(own.name, own, name, unseen))
        yield found
