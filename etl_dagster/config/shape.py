"""Settings that say how a table differs at the destination: their types and spellings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from etl_dagster.table_name import TableName

_PLACEHOLDER = re.compile(r"\{(?:schema|table)\}")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
#: The least number of characters of a salt: a shorter one can be found by trying.
_SHORTEST_SALT = 16


class MaskConfig(BaseModel):
    """What replaces a column's values."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    kind: Literal["null", "constant", "partial", "hash", "off"]
    constant: str = Field("", description="Under `constant`, the value in every row.")
    show_first: int = Field(0, ge=0, description="Under `partial`, characters shown at the start.")
    show_last: int = Field(0, ge=0, description="Under `partial`, characters shown at the end.")
    hidden: str = Field("***", description="Under `partial`, the text for the other characters.")


def _read_mask(value: Any) -> Any:
    """The spellings of a mask as one mapping; any other mapping stays as it is."""
    if value is None:  # in YAML, null without quotes
        return {"kind": "null"}
    if value is False:  # in YAML, off without quotes
        return {"kind": "off"}
    if value == "partial":
        return {"kind": "partial", "show_last": 4}
    if value in ("hash", "null", "off"):
        return {"kind": value}
    if not isinstance(value, Mapping | MaskConfig):
        raise ValueError(
            "must be null, hash, partial, {constant: ...}, {partial: {show_last: 4}} or off"
        )
    if isinstance(value, Mapping) and len(value) == 1:
        if "constant" in value:
            return {"kind": "constant", "constant": _spelled(value["constant"])}
        if isinstance(partial := value.get("partial"), Mapping):
            return {"kind": "partial", **partial}
    return value


#: In YAML ``null``, ``hash``, ``partial``, ``{constant: ...}`` or ``{partial: {...}}``.
MaskSetting: TypeAlias = Annotated[MaskConfig, BeforeValidator(_read_mask)]


def _spelled(value: Any) -> str:
    """A plain value as the text that Postgres reads."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise ValueError("must be a text, a number, true or false")
    return str(value)


class AddConfig(BaseModel):
    """A column with the same value in every row."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    value: str
    type: str = "text"


def _read_added(value: Any) -> Any:
    match value:
        case bool():
            return {"value": _spelled(value), "type": "boolean"}
        case int():
            return {"value": str(value), "type": "bigint"}
        case float():
            return {"value": str(value), "type": "double precision"}
        case str():
            return {"value": value, "type": "text"}
        case {"value": inner, **others}:
            return {**others, "value": _spelled(inner)}
        case Mapping() | AddConfig():
            return value
    raise ValueError("must be a text, a number, true, false, or {value: ..., type: ...}")


#: A plain value, or ``{value: ..., type: ...}``.
AddSetting: TypeAlias = Annotated[AddConfig, BeforeValidator(_read_added)]


def _require_target(text: str) -> str:
    """Raises ValueError if it isn't a table's name, or has other placeholders than the known."""
    TableName.parse(text)
    rest = _PLACEHOLDER.sub("", text)
    if "{" in rest or "}" in rest:
        raise ValueError(
            "may have {schema} and {table}, for the names in the source, in braces only"
        )
    return text


#: Schema and table at the destination, with ``{schema}`` and ``{table}`` for those in the source.
TargetName: TypeAlias = Annotated[str, AfterValidator(_require_target)]


#: The name of a type, as Postgres spells it; `etl_dagster.values.read_as` knows which there are.
TypeName: TypeAlias = Annotated[str, Field(min_length=1)]


def _require_function(text: str) -> str:
    if not _FUNCTION.fullmatch(text):
        raise ValueError("must name a function as package.module:function")
    return text


#: A function of a module that can be imported.
FunctionName: TypeAlias = Annotated[str, AfterValidator(_require_function)]


def require_salt(salt: SecretStr | None) -> SecretStr | None:
    """Raises ValueError if the salt is too short to keep hashed values secret."""
    if salt is not None and len(salt.get_secret_value()) < _SHORTEST_SALT:
        raise ValueError(
            f"must have at least {_SHORTEST_SALT} characters, so that it can't be found by trying; "
            "`openssl rand -hex 32` prints one"
        )
    return salt


def require_names(names: Iterable[str]) -> None:
    """Raises ValueError if one is empty."""
    if not all(names):
        raise ValueError("a name must not be empty")
