"""State store and destination: each section is read by the model of its ``type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic_core import PydanticCustomError

from etl_dagster.config.section import Section
from etl_dagster.config.tables import TableMode
from etl_dagster.kinds import STORES, UnknownKind, find_config_model, known_kinds

#: The type of a destination that a pipeline gets as an object.
GIVEN = "given"
#: The type of a state store if none is configured.
DEFAULT_STORE = "postgres"


class StoreConfig(Section):
    """What the section ``state_store`` has for every type; the base for your own type."""

    type: str

    @property
    def is_in_source(self) -> bool:
        """Whether it is kept in the source's own database."""
        return False


class DestinationConfig(Section):
    """What the section ``destination`` has for every type; the base for your own type."""

    #: Whether the destination has types of its own for values that are text in Arrow, such as
    #: intervals, and creates columns as in `values.form.OwnType`.
    has_own_types: ClassVar[bool] = False
    #: Whether it reads the text that Postgres prints as the value itself. Then values that Arrow
    #: can't hold arrive as text, and are not odd.
    reads_text: ClassVar[bool] = False

    type: str

    @property
    def makes_types(self) -> bool:
        """Whether it creates the types that users of the source created."""
        return False

    @property
    def place(self) -> str:
        """Where it is, for people; without any secret."""
        return self.type

    @property
    def odd_values_at(self) -> str:
        """Where values are that columns' types can't hold, for people: a sentence."""
        return f"A destination of type {self.type} gets them with their rows, and may keep them."

    def refusal(self, choice: str) -> str | None:
        """Why values can't arrive as chosen by `nested` or `numeric`; None: they can.

        If there is a reason against the default of `nested`, values with parts arrive as text.
        """
        return None

    def mode_refusal(self, mode: TableMode) -> str | None:
        """Why tables can't be kept in a mode that the destination doesn't declare, or None."""
        return None

    def left_by_mode(self, before: TableMode, now: TableMode) -> str | None:
        """What becomes of a table's rows when its mode changes, for people.

        None: rows of a mirror are replaced, and other rows stay under another name.
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
