"""What all sections of the configuration have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict

from etl_dagster.config.text import parse_size

#: Bytes: a number, or a text such as ``8MB``.
ByteCount: TypeAlias = Annotated[int, BeforeValidator(parse_size)]


class Section(BaseModel):
    model_config = ConfigDict(
        allow_inf_nan=False,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        populate_by_name=True,
        validate_default=True,
    )

    def relative_to(self, folder: Path) -> Self:
        """The same section with its relative paths taken from `folder`, and ``~`` expanded."""
        paths = {
            name: folder / value.expanduser()
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Path)
        }
        return self.model_copy(update=paths)
