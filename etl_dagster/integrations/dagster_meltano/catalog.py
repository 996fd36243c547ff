"""The streams of a tap, kept so that a load of the definitions need not ask the tap for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster_meltano.project import MeltanoError, MeltanoProject

_log = logging.getLogger(__name__)

#: Discovery asks the tap's source; definitions are loaded by every process of Dagster.
_DISCOVERY_TIMEOUT_S = 120.0
_VERSION = 1


class CatalogUnknown(MeltanoError):
    """The tap's streams are not known, and can't be asked for now."""

    solution = (
        "Read Meltano's own message above. To load definitions without asking the tap, give "
        "`streams` or a `catalog` file: meltano invoke --dump=catalog TAP > catalog.json"
    )


@dataclass(frozen=True)
class StreamColumn:
    """A property of a stream."""

    name: str
    #: As JSON Schema names it, with its format: ``integer``, ``string (date-time)``.
    type: str
    nullable: bool


@dataclass(frozen=True)
class Stream:
    """A selected stream."""

    #: ``tap_stream_id``: the name in states, filters and metrics.
    id: str
    columns: tuple[StreamColumn, ...] = ()
    keys: tuple[str, ...] = ()
    #: ``INCREMENTAL``, ``FULL_TABLE`` or ``LOG_BASED``; None where the catalog leaves it open.
    replication_method: str | None = None
    replication_key: str | None = None


def parse_catalog(payload: Any) -> tuple[Stream, ...]:
    """The selected streams of a Singer catalog, in its order.

    Raises:
        CatalogUnknown: it is not a catalog.
    """
    try:
        return tuple(
            _stream(entry) for entry in payload["streams"] if _is_selected(_metadata(entry, ()))
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise CatalogUnknown("the tap's answer is not a Singer catalog") from error


def _metadata(entry: Mapping[str, Any], breadcrumb: Sequence[str]) -> Mapping[str, Any]:
    for item in entry.get("metadata") or ():
        if list(item.get("breadcrumb") or ()) == list(breadcrumb):
            found: Mapping[str, Any] = item.get("metadata") or {}
            return found
    return {}


def _is_selected(metadata: Mapping[str, Any]) -> bool:
    if metadata.get("inclusion") == "unsupported":
        return False
    if metadata.get("inclusion") == "automatic":
        return True
    return bool(metadata.get("selected", metadata.get("selected-by-default", False)))


def _stream(entry: Mapping[str, Any]) -> Stream:
    own = _metadata(entry, ())
    keys = entry.get("key_properties") or own.get("table-key-properties") or ()
    method = (
        entry.get("replication_method")
        or own.get("replication-method")
        or own.get("forced-replication-method")
    )
    columns = []
    for name, schema in ((entry.get("schema") or {}).get("properties") or {}).items():
        if _is_selected({"selected": True} | dict(_metadata(entry, ("properties", name)))):
            columns.append(_column(name, schema, is_key=name in keys))
    return Stream(
        id=str(entry.get("tap_stream_id") or entry["stream"]),
        columns=tuple(columns),
        keys=tuple(keys),
        replication_method=method or None,
        replication_key=entry.get("replication_key") or own.get("replication-key") or None,
    )


def _column(name: str, schema: Any, *, is_key: bool) -> StreamColumn:
    schema = schema if isinstance(schema, dict) else {}
    types = schema.get("type") or [
        kind
        for option in schema.get("anyOf") or ()
        if isinstance(option, dict)
        for kind in _listed(option.get("type"))
    ]
    kinds = [kind for kind in _listed(types) if kind != "null"]
    text = " or ".join(dict.fromkeys(kinds)) or "any"
    if schema.get("format"):
        text += f" ({schema['format']})"
    return StreamColumn(name, text, nullable=not is_key and "null" in _listed(types))


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


# -- known without asking ------------------------------------------------------------------------


def load_streams(project: MeltanoProject, extractor: str) -> tuple[Stream, ...]:
    """The tap's selected streams, from the last answer to the same question, else from the tap.

    The answer is kept in the project's ``.meltano`` folder, next to Meltano's own files. After a
    file of the project has changed, the tap is asked again; if it can't answer then, its last
    answer is used.

    Raises:
        CatalogUnknown: the tap never answered.
    """
    project.require()
    kept = _read(project, extractor)
    if kept is not None and kept.question == _question(project, extractor):
        return kept.streams
    try:
        return refresh_streams(project, extractor)
    except EtlError as error:
        if kept is None:
            raise
        _log.warning(
            "%s: %s. Its streams are those of its last answer. What to do: %s",
            extractor,
            error.reason,
            error.solution,
        )
        return kept.streams


def refresh_streams(project: MeltanoProject, extractor: str) -> tuple[Stream, ...]:
    """Ask the tap, and keep the answer.

    Raises:
        CatalogUnknown: it gave none.
    """
    try:
        payload = project.ask_json(
            *("invoke", "--dump=catalog", extractor),
            timeout_s=_DISCOVERY_TIMEOUT_S,
        )
    except MeltanoError as error:
        raise CatalogUnknown(f"{extractor} did not list its streams: {error.reason}") from error
    streams = parse_catalog(payload)
    _write(project, extractor, payload)
    return streams


@dataclass(frozen=True)
class _Kept:
    question: str
    streams: tuple[Stream, ...]


def _question(project: MeltanoProject, extractor: str) -> str:
    """A digest of all that selects streams: tap, environment, and the project's YAML files."""
    digest = hashlib.sha256()
    for part in (extractor, project.environment or ""):
        digest.update(part.encode() + b"\0")
    for file in project.files():
        with contextlib.suppress(OSError):
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def _path(project: MeltanoProject, extractor: str) -> Path:
    environment = project.environment or "default"
    name = f"{environment}.{extractor}.catalog.json"
    return project.folder / ".meltano" / "etl_dagster" / name.replace(os.sep, "_")


def _read(project: MeltanoProject, extractor: str) -> _Kept | None:
    try:
        kept = json.loads(_path(project, extractor).read_text("utf-8"))
        if kept["version"] != _VERSION:
            return None
        return _Kept(kept["question"], parse_catalog(kept["catalog"]))
    except (OSError, ValueError, KeyError, TypeError, CatalogUnknown):
        return None


def _write(project: MeltanoProject, extractor: str, payload: Any) -> None:
    path = _path(project, extractor)
    text = json.dumps(
        {"version": _VERSION, "question": _question(project, extractor), "catalog": payload}
    )
    # Without this file the tap is only asked again.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(text, "utf-8")
        fresh.replace(path)
