"""A Meltano project on this machine, and how its console script is called."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from etl_dagster.errors import EtlError

#: For commands that answer and end; starting Meltano takes about a second of it.
ANSWER_TIMEOUT_S = 120.0
_LAST_LINES = 15
#: Source: meltano.core.utils.ENV_VAR_PATTERN.
_VARIABLE = re.compile(r"\\?\$(?:\{(?P<curly>\w+)\}|(?P<plain>[A-Z][A-Z0-9_]*))")


class MeltanoError(EtlError):
    """Meltano refused or failed."""

    solution = "Read Meltano's own message above; run the same command by hand in the project."


class MeltanoNotFound(MeltanoError):
    """There is no project, or no program to run it with."""


@dataclass(frozen=True)
class MeltanoProject:
    """Where the project is, and the environment of its commands."""

    folder: Path
    #: Meltano's environment, such as ``dev``; None leaves it to `default_environment`.
    environment: str | None = None
    #: The console script; None looks next to this Python and then on the PATH.
    executable: str | None = None
    #: Added to this process's environment variables. May hold secrets, so it is never shown.
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)

    def require(self) -> None:
        """Check that the project is there.

        Raises:
            MeltanoNotFound: it is not, or Meltano isn't installed.
        """
        if not (self.folder / "meltano.yml").is_file():
            raise MeltanoNotFound(
                f"there is no meltano.yml in {self.folder}",
                solution="Name the folder of a Meltano project; `meltano init` makes one.",
            )
        self.find_executable()

    def find_executable(self) -> str:
        """The console script; there is no ``python -m meltano``.

        Raises:
            MeltanoNotFound: it isn't there.
        """
        if self.executable is not None:
            found = shutil.which(self.executable)
        else:
            # Not resolved: a venv's Python is a link to one that knows nothing of Meltano.
            here = Path(sys.executable).parent / "meltano"
            found = str(here) if here.exists() else shutil.which("meltano")
        if found is None:
            raise MeltanoNotFound(
                f"Meltano's program {self.executable or 'meltano'!r} is not found",
                solution="Install it next to Dagster: pip install meltano; or give `executable`.",
            )
        return found

    def command(self, *arguments: str) -> list[str]:
        """The whole command, as a list: no shell ever reads it."""
        environment = ["--environment", self.environment] if self.environment else []
        return [self.find_executable(), *environment, *arguments]

    def environ(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment variables of a command."""
        return {
            **os.environ,
            "NO_COLOR": "1",
            # Nothing here goes to a terminal, and the check needs the internet.
            "MELTANO_CLI_DISABLE_VERSION_CHECK": "true",
            **self.variables,
            **(more or {}),
        }

    def variable(self, name: str) -> str | None:
        """An environment variable as Meltano finds it: set here, or else in the file ``.env``."""
        from dotenv import dotenv_values

        return self.environ().get(name) or dotenv_values(self.folder / ".env").get(name) or None

    def expanded(self, text: str, more: Mapping[str, Any]) -> str:
        """The text with the values of the variables that it names; one that is not set is empty.

        A backslash before a variable is ignored: Meltano expands such a text several times.

        Args:
            more: variables that win over those that `variable` finds.

        Source: meltano.core.utils.expand_env_vars.
        """

        def value(match: re.Match[str]) -> str:
            name = match["curly"] or match["plain"]
            return str(more[name]) if name in more else self.variable(name) or ""

        return _VARIABLE.sub(value, text)

    def files(self) -> list[Path]:
        """``meltano.yml`` and the files that it includes.

        Raises:
            MeltanoError: ``meltano.yml`` can't be read.

        Source: meltano.core.project_files.ProjectFiles.
        """
        main = self.folder / "meltano.yml"
        patterns = read_yaml(main).get("include_paths") or ()
        try:
            included = [path for pattern in patterns for path in sorted(self.folder.glob(pattern))]
        except (TypeError, ValueError, NotImplementedError) as error:
            raise MeltanoError(
                f"the include_paths in {main} can't be read: {error}",
                solution="Write a list of patterns that are relative to the project's folder.",
            ) from error
        return list(dict.fromkeys([main, *included]))

    def ask(self, *arguments: str, timeout_s: float = ANSWER_TIMEOUT_S, quiet: bool = False) -> str:
        """Run a command to its end; returns what it wrote to stdout.

        Args:
            quiet: log errors only, for commands of which only the answer matters.

        Raises:
            MeltanoError: it failed, or took too long.
        """
        self.require()
        what = f"meltano {' '.join(arguments[:2])}"
        with subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environ({"MELTANO_CLI_LOG_LEVEL": "error"} if quiet else {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=timeout_s)
            except BaseException as error:
                # The whole group: a tap that hangs would outlive Meltano.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                raise MeltanoError(
                    f"`{what}` gave no answer in {timeout_s:.0f} s",
                    solution="See what it waits for: run it by hand in the project.",
                ) from None
        if process.returncode != 0:
            lines = (stderr or stdout).strip().splitlines()[-_LAST_LINES:]
            raise MeltanoError(
                f"`{what}` ended with exit code {process.returncode}: "
                + (self.without_secrets("\n".join(lines)) or "it printed nothing")
            )
        return stdout

    def ask_json(self, *arguments: str, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """As `ask`, for a command that answers in JSON."""
        answer = self.ask(*arguments, timeout_s=timeout_s, quiet=True)
        try:
            return json.loads(answer)
        except ValueError:
            raise MeltanoError(
                f"`meltano {' '.join(arguments[:2])}` did not answer in JSON"
            ) from None

    def settings(self) -> Mapping[str, Any]:
        """The project's own settings as Meltano resolves them, secrets included."""
        settings: Mapping[str, Any] = self.ask_json("config", "--unsafe", "print", "meltano")
        return settings

    def without_secrets(self, text: str) -> str:
        """The text with the secrets of the project's variables masked."""
        return self.secret_remover()(text)

    def secret_remover(self) -> Callable[[str], str]:
        """A function that masks the secrets that commands get to see, for many texts.

        A variable is secret if its name says so; the password in a URI is secret by itself, too.
        The variables are those given here, those of this process, and those of the file ``.env``.
        """
        from dotenv import dotenv_values

        found = _secrets_in(self.variables)
        inherited = os.environ | dotenv_values(self.folder / ".env")
        # The names of inherited variables say less: neither a switch nor a path is secret.
        found |= {
            secret
            for secret in _secrets_in(inherited)
            if len(secret) > 5 and not secret.startswith(("/", "."))
        }
        # Shorter ones occur in ordinary words. The longest first: one may be a part of another.
        secrets = sorted((s for s in found if len(s) > 3), key=len, reverse=True)

        def remove(text: str) -> str:
            for secret in secrets:
                text = text.replace(secret, "***")
            return text

        return remove


def read_yaml(path: Path) -> Mapping[str, Any]:
    """A YAML file of the project; empty where it holds no mapping.

    Raises:
        MeltanoError: it can't be read.
    """
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise MeltanoError(
            f"{path} can't be read: {error.strerror}",
            solution="Check that the file is there, and that this user may read it.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # Not the message: it quotes the line, which may hold a secret.
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}," if mark is not None else str(path)
        raise MeltanoError(f"{where} can't be read as YAML", solution="Correct the file.") from None


@functools.lru_cache(maxsize=64)
def _parsed(path: Path, changed_at: int) -> Mapping[str, Any]:
    content = yaml.safe_load(path.read_text("utf-8"))
    return content if isinstance(content, dict) else {}


_SECRET_WORDS = ("PASSWORD", "SECRET", "TOKEN", "KEY", "URI", "URL", "DSN", "CREDENTIAL")


def _secrets_in(variables: Mapping[str, str | None]) -> set[str]:
    found = set()
    for name, value in variables.items():
        if not value:
            continue
        if any(word in name.upper() for word in _SECRET_WORDS):
            found.add(value)
        if "://" in value:
            password = _password_of(value)
            found |= {password, unquote(password)}
    return found


def _password_of(uri: str) -> str:
    try:
        return urlsplit(uri).password or ""
    except ValueError:
        return ""
