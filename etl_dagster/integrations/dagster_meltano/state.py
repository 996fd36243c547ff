"""Meltano's state as a Dagster resource, for any asset or op."""

# Dagster reads the annotations of a resource's fields, so they must not be strings.
import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dagster import ConfigurableResource, InitResourceContext
from pydantic import Field, PrivateAttr

from etl_dagster.errors import ConfigError, InvalidState
from etl_dagster.integrations.dagster.resources.env import resolved
from etl_dagster.integrations.dagster_meltano.project import MeltanoError, MeltanoProject
from etl_dagster.integrations.dagster_meltano.resources import MeltanoResource
from etl_dagster.integrations.meltano.states.glob import matcher
from etl_dagster.integrations.meltano.states.locks import StateLease
from etl_dagster.integrations.meltano.states.records import StateVersion
from etl_dagster.integrations.meltano.states.storage import StateStorage
from etl_dagster.integrations.meltano.states.uri import SCHEMES

_SINGER_STATE = "singer_state"
#: A setting that no other state backend for Postgres has. A Meltano in another environment, without
#: this package, may have such a backend; its tables must be left alone.
_OWN_SETTING = "history_versions"


class MeltanoStateResource(ConfigurableResource[Any]):
    """The state of a Meltano project, or of a state backend without any project.

        MeltanoStateResource(project_dir="/srv/meltano", environment="prod")
        MeltanoStateResource(uri=EnvVar("STATE_URI"))

        @asset
        def report(meltano_state: MeltanoStateResource):
            for state_id in meltano_state.list("dev:shop-to-duckdb:*"):
                bookmark = meltano_state.get(state_id)

    A project may have any of Meltano's state backends; it is asked with Meltano's own commands,
    about a second each. Where that is PostgreSQL, with the backend of this package, and with a
    URI, the database is asked itself; then there are also histories and run leases.
    """

    uri: str | None = Field(
        default=None,
        repr=False,
        description="postgres://user:password@host/database/schema, as an EnvVar.",
    )
    project_dir: str | None = Field(default=None, description="The folder that holds meltano.yml.")
    environment: str | None = Field(default=None, description="Meltano's environment.")
    executable: str | None = Field(default=None, description="Meltano's program.")
    env: dict[str, str] = Field(
        default={}, repr=False, description='Environment variables; secrets as EnvVar("...").'
    )

    _states: "_Database | _Commands | None" = PrivateAttr(None)
    _run_id: str | None = PrivateAttr(None)

    @classmethod
    def of_project(cls, meltano: MeltanoResource) -> "MeltanoStateResource":
        """The state that the project's own runs read and write."""
        env = dict(meltano.env)
        if meltano.state_backend_uri is not None:
            # Passed on as it is: an EnvVar stays one.
            env["MELTANO_STATE_BACKEND_URI"] = meltano.state_backend_uri
        return cls(
            project_dir=meltano.project_dir,
            environment=meltano.environment,
            executable=meltano.executable,
            env=env,
        )

    def setup_for_execution(self, context: InitResourceContext) -> None:
        self._run_id = context.run.run_id if context.run is not None else None

    def teardown_after_execution(self, context: InitResourceContext) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; the next call opens it again."""
        states, self._states = self._states, None
        if states is not None:
            states.close()

    # -- reading -----------------------------------------------------------------------------------

    def list(self, pattern: str = "*") -> list[str]:
        """The state IDs that match a pattern such as ``dev:shop-to-*``, in order."""
        return self._open().list(pattern)

    def get(self, state_id: str) -> dict[str, Any] | None:
        """As the next run would get it: ``{"singer_state": ...}``; None where there is none."""
        return self._open().get(state_id)

    def export(self, pattern: str = "*") -> dict[str, dict[str, Any]]:
        """States with both halves, as `meltano state export` writes them."""
        return self._open().export(pattern)

    # -- writing -----------------------------------------------------------------------------------

    def set(self, state_id: str, state: Mapping[str, Any]) -> None:
        """Replace a state.

        Raises:
            InvalidState: there is no ``singer_state`` at the top.
        """
        self._open().set(state_id, _valid(state))

    def merge(self, state_id: str, state: Mapping[str, Any]) -> None:
        """Merge bookmarks into those that are there.

        Raises:
            InvalidState: there is no ``singer_state`` at the top.
        """
        self._open().merge(state_id, _valid(state))

    def clear(self, state_id: str) -> None:
        """Delete a state; a missing one is not an error. The next run starts from the beginning."""
        self._open().clear(state_id)

    # -- with the backend of this package ----------------------------------------------------------

    @property
    def is_postgres(self) -> bool:
        """Whether the state has histories and run leases."""
        return isinstance(self._open(), _Database)

    def history(self, state_id: str, *, limit: int | None = None) -> Sequence[StateVersion]:
        """The versions that are kept, the newest first: when, by whom, in which run.

        Raises:
            InvalidState: the backend keeps none.
        """
        return self._storage().history(state_id, limit=limit)

    def restore(self, state_id: str, version: int) -> None:
        """Write an earlier version again.

        Raises:
            StateVersionMissing: the history has no such version.
            InvalidState: the backend keeps none.
        """
        self._storage().restore(state_id, version)

    @contextlib.contextmanager
    def run_lease(self, state_id: str, *, wait_s: float = 0.0) -> Iterator[StateLease]:
        """No other process runs a pipeline with this state ID during the block, on any machine.

        Args:
            wait_s: how long to wait for the end of another run, seconds.

        Raises:
            StateLocked: another run has it; says who.
            InvalidState: the backend has none.
        """
        with self._storage().run_lease(state_id, wait_seconds=wait_s) as lease:
            yield lease

    # ----------------------------------------------------------------------------------------------

    def _storage(self) -> StateStorage:
        states = self._open()
        if isinstance(states, _Database):
            return states.storage
        raise InvalidState(
            "this state backend has neither histories nor run leases",
            solution="Use PostgreSQL: set state_backend.uri to postgres://...",
        )

    def _open(self) -> "_Database | _Commands":
        if self._states is None:
            self._states = self._choose()
        return self._states

    def _choose(self) -> "_Database | _Commands":
        if self.uri is not None:
            return _Database(self._connect(resolved(self.uri, "uri")))
        if self.project_dir is None:
            raise ConfigError(["needs uri or project_dir"], origin="MeltanoStateResource")
        project = MeltanoProject(
            Path(resolved(self.project_dir, "project_dir")).absolute(),
            resolved(self.environment, "environment"),
            resolved(self.executable, "executable"),
            resolved(self.env, "env"),
        )
        section = project.settings().get("state_backend") or {}
        uri = section.get("uri")
        scheme = urlsplit(uri).scheme if isinstance(uri, str) else ""
        if scheme in SCHEMES and _OWN_SETTING in (section.get(scheme) or {}):
            return _Database(self._connect(str(uri), section))
        return _Commands(project)

    def _connect(self, uri: str, section: Mapping[str, Any] | None = None) -> StateStorage:
        """Connect as Meltano's state backend does with the same settings."""
        section = section or {}
        own = section.get(urlsplit(uri).scheme)
        # Meltano prints {} for what isn't set.
        settings = {
            name: value
            for name, value in {**section, **(own if isinstance(own, dict) else {})}.items()
            if not isinstance(value, dict)
        }
        return StateStorage.from_uri(uri, settings, run_id=lambda: self._run_id)


def _valid(state: Mapping[str, Any]) -> Mapping[str, Any]:
    if _SINGER_STATE not in state:
        raise InvalidState(
            f"a state needs {_SINGER_STATE!r} at the top, as Meltano has it",
            solution='Write {"singer_state": {"bookmarks": {...}}}.',
        )
    return state


class _Database:
    """The database itself."""

    def __init__(self, storage: StateStorage) -> None:
        self.storage = storage

    def list(self, pattern: str) -> list[str]:
        return self.storage.list_ids(pattern)

    def get(self, state_id: str) -> dict[str, Any] | None:
        stored = self.storage.get(state_id)
        return None if stored is None else stored.merged()

    def export(self, pattern: str) -> dict[str, dict[str, Any]]:
        return {
            stored.state_id: {
                "completed": stored.completed_object(),
                "partial": stored.partial_object(),
            }
            for stored in self.storage.get_all(pattern)
        }

    def set(self, state_id: str, state: Mapping[str, Any]) -> None:
        self.storage.set(state_id, completed=state)

    def merge(self, state_id: str, state: Mapping[str, Any]) -> None:
        self.storage.merge(state_id, state)

    def clear(self, state_id: str) -> None:
        self.storage.delete(state_id)

    def close(self) -> None:
        self.storage.close()


def _parsed(answer: str, command: str) -> dict[str, Any]:
    """The JSON object that a command answered; empty where it answered nothing.

    Raises:
        MeltanoError: it is not a JSON object.
    """
    try:
        parsed = json.loads(answer) if answer.strip() else {}
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise MeltanoError(f"`meltano {command}` did not answer with a JSON object")
    return parsed


class _Commands:
    """Meltano's commands, for every backend that it has."""

    def __init__(self, project: MeltanoProject) -> None:
        self._project = project

    def list(self, pattern: str) -> list[str]:
        # Matched here, because not all backends have the same patterns.
        lines = self._ask("list").splitlines()
        matches = matcher(pattern)
        found = (line.strip() for line in lines if line.strip())
        return sorted(line for line in found if matches is None or matches(line))

    def get(self, state_id: str) -> dict[str, Any] | None:
        return _parsed(self._ask("get", state_id), f"state get {state_id}") or None

    def export(self, pattern: str) -> dict[str, dict[str, Any]]:
        matches = matcher(pattern)
        try:
            answer = self._ask("export")
        except MeltanoError as error:
            if "No such command" not in error.reason:
                raise
            raise MeltanoError(
                "this Meltano can't export states",
                solution="Upgrade to Meltano 4.3, or read them one by one: list() and get().",
            ) from None
        states = _parsed(answer, "state export")
        return {name: s for name, s in states.items() if matches is None or matches(name)}

    def set(self, state_id: str, state: Mapping[str, Any]) -> None:
        self._ask_with_file("set", "--force", state=state, state_id=state_id)

    def merge(self, state_id: str, state: Mapping[str, Any]) -> None:
        self._ask_with_file("merge", state=state, state_id=state_id)

    def clear(self, state_id: str) -> None:
        self._ask("clear", "--force", state_id)

    def close(self) -> None:
        pass

    def _ask(self, *arguments: str) -> str:
        return self._project.ask("state", *arguments, quiet=True)

    def _ask_with_file(self, *arguments: str, state: Mapping[str, Any], state_id: str) -> None:
        """In a file, because a command line may be too short, and other users can read it."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            self._ask(*arguments, "--input-file", file.name, state_id)
