"""State store and destination: each section is read by the model of its ``type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic_core import PydanticCustomError

from etl_dagster.config.section import Section
from etl_dagster.config.tables import TableMode
from etl_dagster.kinds import STORES, UnknownKind, find_config_model, known_kinds

#: Stands for the type of a destination that a pipeline is given as an object.
GIVEN = "given"
#: The type of a state store that names none.
DEFAULT_STORE = "postgres"


class StoreConfig(Section):
    """What the section ``state_store`` of every type has; the base of a type of one's own."""

    type: str

    @property
    def is_in_source(self) -> bool:
        """Whether it is kept in the source's own database."""
        return False


class DestinationConfig(Section):
    """What the section ``destination`` of every type has; the base of a type of one's own."""

    #: Whether the destination has types of its own for what is text in Arrow, such as intervals,
    #: and makes its columns by `values.form.OwnType`.
    has_own_types: ClassVar[bool] = False
    #: Whether it reads the text that Postgres prints as the value itself: what Arrow can't hold
    #: arrives as text then, and nothing of it is odd.
    reads_text: ClassVar[bool] = False

    type: str

    @property
    def makes_types(self) -> bool:
        """Whether it makes the types that users of the source made."""
        return False

    @property
    def place(self) -> str:
        """Where it is, for people; without any secret."""
        return self.type

    @property
    def odd_values_at(self) -> str:
        """Where values went that columns' types can't hold, for people: a sentence."""
        return f"A destination of type {self.type} is sent them with their rows and may keep them."

    def refusal(self, choice: str) -> str | None:
        """Why values can't arrive in this way, a choice of `nested` or `numeric`; None: they can.

        Where it gives a reason for the default of `nested`, values with parts arrive as text.
        """
        return None

    def mode_refusal(self, mode: TableMode) -> str | None:
        """Why tables can't be kept in a mode that the destination doesn't declare; None: unsaid."""
        return None

    def left_by_mode(self, before: TableMode, now: TableMode) -> str | None:
        """What becomes of a table's rows when its mode changes, for people.

        None: a mirror's are replaced, and any others stay under another name.
        """
        return None


class ByType:
    """Validates a section with the model that belongs to its ``type``."""

    def __init__(self, group: str, default: str | None = None) -> None:
        self._group = group
        self._default = default

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        name = value.get("type", self._default)
        known = ", ".join(known_kinds(self._group))
        if name is None:
            raise PydanticCustomError(
                "type_missing", "is required; known are: {known}", {"known": known}
            )
        try:
            return self.model(name).model_validate(value)
        except UnknownKind as error:
            raise PydanticCustomError("type_unknown", "{why}", {"why": error.reason}) from error

    def model(self, name: object) -> type[Section]:
        if not isinstance(name, str):
            raise UnknownKind(f"must be one of: {', '.join(known_kinds(self._group))}")
        found = find_config_model(self._group, name)
        if not (isinstance(found, type) and issubclass(found, Section)):
            raise UnknownKind("the config_model of this type's class does not fit this section")
        return found


def default_store() -> StoreConfig:
    made: StoreConfig = find_config_model(STORES, DEFAULT_STORE)()
    return made
