"""Code references: the places in the user's own files that define an asset."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from dagster import (
    BetaWarning,
    CodeReferencesMetadataValue,
    LocalFileCodeReference,
    UrlCodeReference,
)

from etl_dagster.integrations.dagster.resources.config_file import EtlConfigFileResource
from etl_dagster.integrations.dagster.resources.etl_resource import EtlResource

_KEY = "dagster/code_references"
#: A file, a line, and a label that says what stands there.
Reference = tuple[str, int, str]


def config_reference(resource: EtlResource, table: str) -> Reference | None:
    """The configuration file, at the line that names the table if there is one, else at line 1."""
    if not isinstance(resource, EtlConfigFileResource):
        return None
    path = Path(str(resource.path))
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    named = re.compile(rf"\s+[\"']?{re.escape(table)}[\"']?\s*:")
    line = next((number for number, text in enumerate(lines, 1) if named.match(text)), 1)
    return str(path.absolute()), line, "configuration"


def caller_reference() -> Reference | None:
    """The line of the user's module that called this package; None if no module is being loaded."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.partition(".")[0] not in ("etl_dagster", "dagster", "dagster_shared"):
            path = Path(frame.f_code.co_filename)
            is_module = frame.f_code.co_name == "<module>" and path.is_file()
            return (str(path.absolute()), frame.f_lineno, "definitions") if is_module else None
        frame = frame.f_back
    return None


def function_reference(function: Callable[..., Any]) -> Reference | None:
    """Where a function is defined."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    return str(Path(code.co_filename).absolute()), code.co_firstlineno, "the copy's body"


def with_references(metadata: Mapping[str, Any], *found: Reference | None) -> dict[str, Any]:
    """The metadata of an asset, with these references in front of those that it has already."""
    kept = metadata.get(_KEY)
    with warnings.catch_warnings():
        # Dagster warns of a beta for each object. The user can't act on that warning.
        warnings.simplefilter("ignore", BetaWarning)
        references: list[LocalFileCodeReference | UrlCodeReference] = [
            LocalFileCodeReference(file_path=path, line_number=line, label=label)
            for path, line, label in filter(None, found)
        ]
        if isinstance(kept, CodeReferencesMetadataValue):
            references += [each for each in kept.code_references if each not in references]
        if not references:
            return dict(metadata)
        return {**metadata, _KEY: CodeReferencesMetadataValue(code_references=references)}
