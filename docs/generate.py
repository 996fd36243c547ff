"""Writes what the site has that is made from the code: settings, commands, types, modes, states.

A script and not a plugin, so that any builder of the site can be run after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from etl_dagster.cli.app import cli
from etl_dagster.config import ENV_PREFIX, DestinationConfig, PipelineConfig, StoreConfig
from etl_dagster.config.shape import AddConfig, MaskConfig
from etl_dagster.config.text import parse_size
from etl_dagster.destinations.duckdb.tables import declared_type
from etl_dagster.kinds import DESTINATIONS, STORES, built_in_kinds, find_config_model, find_kind
from etl_dagster.model.destination import Capabilities
from etl_dagster.model.modes import MODES, TableMode
from etl_dagster.values.columns import ColumnSchema
from etl_dagster.values.form import BuiltIn
from etl_dagster.values.forms import form_of
from etl_dagster.values.registry import REGISTRY
from etl_dagster.values.types import (
    Array,
    Attribute,
    Composite,
    Enum,
    Multirange,
    PgType,
    Range,
    Scalar,
)


def main() -> None:
    from runbook import errors_page, messages_page  # next to this script
    from states_diagram import states_diagram

    _write(Path(__file__).parent / "diagrams" / "states.svg", states_diagram())
    folder = Path(__file__).parent / "generated"
    folder.mkdir(exist_ok=True)
    _write(folder / "configuration.md", _below_title(configuration_page()))
    _write(folder / "command-line.md", _below_title(command_line_page()))
    _write(folder / "types.md", _below_title(types_page()))
    _write(folder / "modes.md", _below_title(modes_page()))
    _write(folder / "errors.md", _below_title(errors_page()))
    _write(folder / "messages.md", _below_title(messages_page()))


def _below_title(page: str) -> str:
    """What the page of the same name in `reference` includes; it has the title, also on GitHub."""
    return page.partition("\n\n")[2]


def _write(path: Path, text: str) -> None:
    """Only where it differs: the style and the tests may be looked at meanwhile."""
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


# -- modes -------------------------------------------------------------------------------------

#: What a table in a mode keeps.
_KEPT: Mapping[TableMode, str] = {
    "mirror": "the rows that the source has now",
    "soft_delete": "the same, and deleted rows, marked",
    "append": "every change",
    "scd2": "every version of a row, with the time when it was valid",
}


def modes_page() -> str:
    """Which destination keeps tables in which modes, and with which guarantees."""
    parts = [
        """# Modes

[`mode`](../guides/history.md) chooses what a table keeps at its destination. This page is made
from what each destination [declares](contracts.md); the [test suite](testing.md) checks it for
every mode.

"""
        "| destination | mode | keeps | each change | truncate | columns that change "
        "| values that can't be held |\n|---|---|---|---|---|---|---|\n"
    ]
    for kind in built_in_kinds(DESTINATIONS):
        capabilities = find_kind(DESTINATIONS, kind).capabilities
        for mode in MODES:
            cells = _guarantees(capabilities, mode)
            parts.append(f"| `{kind}` | `{mode}` | {' | '.join(cells)} |\n")
    parts.append(
        """
"Once" holds whichever process is killed, and wherever a batch was cut. "At least once" means that a
change may be written again after a failure; its position is the same both times.

Where columns that change are "not followed", the destination renames and converts none: a table
with such a change is copied again.
"""
    )
    return "".join(parts)


def _guarantees(capabilities: Capabilities, mode: TableMode) -> list[str]:
    if mode not in capabilities.modes:
        return ["refused at the start", *[""] * 4]
    kept = _KEPT[mode] if capabilities.mirror else "every change, as it comes"
    return [
        kept,
        "once" if capabilities.transactional else "at least once",
        "followed" if capabilities.truncate else "not followed",
        "followed" if capabilities.schema_changes else "not followed",
        "kept as text" if capabilities.odd_values else "sent with their rows",
    ]


# -- settings ----------------------------------------------------------------------------------


def configuration_page() -> str:
    """Every setting of ``etl.yaml``, from the models that read it."""
    parts = [
        f"""# Configuration

A pipeline is one YAML file, by default `etl.yaml`; `etl-dagster init` writes a commented one. From
Python, [`load_config`][etl_dagster.config.load_config] reads it and
[`parse_config`][etl_dagster.config.parse_config] takes the same as a dictionary.

`${{NAME}}` in a value is an environment variable, `${{NAME:-other}}` has a default, `$$` is a
dollar sign. Any setting can be overridden from the environment: `{ENV_PREFIX}SOURCE__PASSWORD` is
`source.password`. Unknown settings are refused, and all mistakes are reported at once. Secrets
never show in logs and errors. Sizes may be numbers of bytes, or texts such as `8MB` or `8MiB`.

## Pipeline
""",
        *_table(PipelineConfig),
    ]
    for name, setting in _settings(PipelineConfig):
        models = list(_models(setting.annotation))
        if not models:
            continue
        key = "schema.table" if name == "tables" else "name"
        title = f"{name}.<{key}>" if get_origin(setting.annotation) is dict else name
        parts.append(f"\n## `{title}` {{ #{name} }}\n")
        several = len(models) > 1
        for model in models:
            if several:
                parts.append(f"\n### `{name}.type: {_kind(model)}` {{ #{name}-{_kind(model)} }}\n")
            parts += [model.__doc__ or "", "", *_table(model)]
            for inner, section in _settings(model):
                for each in _models(section.annotation):
                    parts.append(f"\n### `{title}.{inner}.<name>` {{ #{inner} }}\n")
                    parts += [each.__doc__ or "", "", *_table(each)]
    return "\n".join(parts) + "\n"


def _table(model: type[BaseModel]) -> Iterator[str]:
    yield "| setting | type | default | |"
    yield "|---|---|---|---|"
    for name, setting in _settings(model):
        models = list(_models(setting.annotation))
        kind = f"[section](#{name})" if models else _type(setting)
        about = setting.description or ""
        if len(models) == 1:
            about = about or models[0].__doc__ or ""
        elif models:
            about = about or f"By `type`: {', '.join(map(_kind, models))}."
        yield f"| `{name}` | {kind} | {_default(setting, bool(models))} | {about} |"
    yield ""


def _settings(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, setting in model.model_fields.items():
        yield setting.alias or name, setting


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models of a section: one, or one for each ``type`` that it may have."""
    for part in get_args(annotation) or (annotation,):
        if not (isinstance(part, type) and issubclass(part, BaseModel)):
            continue
        kind = part.model_fields.get("type")
        if kind is not None and get_origin(kind.annotation) is not Literal:
            group = STORES if issubclass(part, StoreConfig) else DESTINATIONS
            yield from (find_config_model(group, name) for name in built_in_kinds(group))
        else:
            yield part


def _kind(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["type"].annotation)[0])


def _is_size(setting: FieldInfo) -> bool:
    """Whether it is a number of bytes, which may be written as a text such as ``8MiB``."""
    return any(getattr(item, "func", None) is parse_size for item in _constraints(setting))


def _constraints(setting: FieldInfo) -> list[Any]:
    """Those of the setting, and those of a value that may be left out."""
    parts = (part for part in get_args(setting.annotation) if get_origin(part) is Annotated)
    return [*setting.metadata, *(each for part in parts for each in get_args(part)[1:])]


def _size(count: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB")):
        if count >= unit and count % unit == 0:
            return f"{count // unit} {name}"
    return f"{count} bytes"


def _type(setting: FieldInfo) -> str:
    if _is_size(setting):
        least = next((each.ge for each in _constraints(setting) if hasattr(each, "ge")), 0)
        return f"size, at least {_size(least)}" if least else "size"
    limits = [limit for item in setting.metadata if (limit := _limit(item))]
    return ", ".join([_name(setting.annotation), *limits])


def _name(annotation: Any) -> str:
    arguments = [part for part in get_args(annotation) if part is not NoneType]
    match get_origin(annotation):
        case None:
            names = {str: "text", SecretStr: "secret", Path: "path", bool: "true or false"}
            names |= {int: "integer", float: "number", Any: "any value"}
            names |= {DestinationConfig: "[section](#destination)"}
            names |= dict.fromkeys(
                (AddConfig, MaskConfig), "[see the guide](../guides/shape-tables.md)"
            )
            return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
        case origin if origin is Literal:
            return ", ".join(f"`{value}`" for value in arguments)
        case origin if origin in (Union, UnionType):
            return " or ".join(map(_name, arguments))
        case origin if origin is Annotated:
            return _name(arguments[0])
        case origin if origin is dict:
            held = arguments[1]
            nested = get_origin(held) in (Union, UnionType) and len(get_args(held)) > 2
            name = "any value" if nested else _name(held)
            return name if name.startswith("[see") else f"{name} by name"
        case _:
            return f"list of {_name(arguments[0])}"


def _limit(constraint: Any) -> str | None:
    for name, words in (
        ("ge", "at least"),
        ("gt", "more than"),
        ("le", "at most"),
        ("lt", "less than"),
        ("max_length", "at most"),
        ("pattern", "matches"),
    ):
        value = getattr(constraint, name, None)
        if value is None:
            continue
        if name == "max_length":
            return f"{words} {value} characters"
        return f"{words} `{value}`".replace("|", "\\|") if name == "pattern" else f"{words} {value}"
    return None


def _default(setting: FieldInfo, section: bool) -> str:
    if setting.is_required():
        return "**required**"
    value = setting.get_default(call_default_factory=True)
    if section or value in (None, PydanticUndefined, {}, ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if _is_size(setting):
        return _size(value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# -- commands ----------------------------------------------------------------------------------


def command_line_page() -> str:
    """What ``--help`` says of each command."""
    parts = [
        "# Command line\n\nThe output of `--help` for each command. What all commands have in "
        "common, exit codes and shell completion are in "
        "[The command line](../guides/command-line.md).\n"
    ]
    for path, command in _commands("etl-dagster", cli):
        context = click.Context(command, info_name=path, max_content_width=88, terminal_width=88)
        context.help_option_names = ["-h", "--help"]
        parts.append(f"## `{path}`\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def _commands(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _commands(f"{path} {name}", found)


# -- types -------------------------------------------------------------------------------------

_TYPES_INTRODUCTION = """# Types

How the values of each type arrive: in Arrow, which is what a destination receives; in DuckDB; and
in the JSON of the [HTTP destination](../destinations/http.md). Copy and stream give the same
values. A domain is treated as its base type.

The last column has values at the edges of each type, as Postgres prints them. They are kept as
they are, unless the cell says otherwise. A value that the column can't hold is *odd*: it follows
the setting [`odd_values`](../guides/odd-values.md), and its text is kept.
"""
_TYPES_END = """
## Any other type

A type of an extension (`citext`, `ltree`, `cube`, `vector`), and any type that is not listed above,
arrives as text, exactly as Postgres prints it.

An array becomes a list as deep as its column declares. An array with other dimensions, or with
lower bounds other than 1, is odd. A composite without attributes, or with attributes whose names
differ in case alone, is text.

## DuckDB's own types

`ENUM`, `INTERVAL`, `BIT`, `TIME WITH TIME ZONE` and `UBIGINT` in the third column hold what is
text in Arrow and JSON. A column gets such a type when its table is copied with DuckDB 2 or later.
Earlier versions can't read Postgres' longest intervals, and use text. A column that an earlier
version copied stays `VARCHAR` until the next copy; `etl-dagster doctor` names it.

An **enum** sorts in the order of its labels, as in Postgres. When a label is added at the source,
it is added here, in its place, with the first row that has it; DuckDB then rewrites the column.
After a label is renamed, the table is copied again. Inside arrays and composites, labels are
text.

An **interval** keeps months, days and microseconds apart, as in Postgres. Two intervals are equal
by the same rule: a month is 30 days, a day 24 hours. In a key it is text.

`etl-dagster query` shows all of these types as text, exactly. Other clients of DuckDB don't
support all of them: in Arrow and Polars a `TIME WITH TIME ZONE` loses its zone; pandas refuses a
result with one; a `BIT` arrives as bytes in DuckDB's own format; Python and pandas turn an
`INTERVAL` into a `timedelta`, with 30 days for a month. A cast helps: `SELECT * REPLACE
(opens::VARCHAR AS opens) FROM public.shops`.

These types are text, for a reason:

| type | reason |
|---|---|
| an enum without a label | DuckDB has no such type |
| `numeric(p,s)` of more than 38 digits | `DECIMAL` ends there, and `HUGEINT` soon after |
| `pg_lsn` | DuckDB has no such type; a number would differ from what Postgres shows |
{stays_text}

## Numeric without a precision

It is text by default. With the setting `numeric` it becomes a decimal or a double, from the
table's next copy on; not in keys, and not inside values with parts. Odd are then: a number with
more digits than the decimal, `NaN` and the infinities in a decimal, and a number beyond the range
of a double.

## Values with parts

By default, arrays, ranges, multiranges, composites and hstore become lists, structs and maps.
With `nested: json` they are JSON, and with `nested: text` they are the text that Postgres prints.
In columns of the key they are always text.

## Money

`money` is printed as with `lc_monetary = C`, whatever the server, the database or the role
prefers. Another locale can be chosen in the DSN: `options=-c%20lc_monetary=de_DE.UTF-8`. If the
source's own currency has another number of digits after the point, a start is refused until a
locale is chosen. After another choice, tables with `money` are copied again.

## Databases in another encoding than UTF8

Text is converted to UTF-8. A byte that can't be converted (one without a character in WIN1252,
anything but UTF-8 in SQL_ASCII) arrives as `\\x81`, and the bytes are
[kept](../guides/odd-values.md). With multi-byte encodings (EUC_JP and the like) the server
converts, and refuses characters that UTF-8 lacks.

## Keys

A row is found by the text that Postgres prints for its key. Postgres sends the old key with an
update whenever the bytes of the key change, also between values that it calls equal (`1.0` and
`1.00`, `-0` and `0`, `1 day` and `24 hours`, `Ab` and `AB` in `citext` or under a
nondeterministic collation). So there is one row for each row of Postgres, with the key as it is
written now.

| type | in a key |
|---|---|
"""
_ANY_KEY = "| every other type that Postgres accepts in a key | found by its value, exactly |\n"


def types_page() -> str:
    """Every type that Postgres brings, from the registry, and those that are built of others."""
    parts = [
        _TYPES_INTRODUCTION,
        "| Postgres | Arrow | DuckDB | JSON | values |\n|---|---|---|---|---|",
    ]
    for row in REGISTRY.values():
        for name, modifier in _modifiers(row).items():
            values = _edges(row) if modifier == -1 else ""
            column = ColumnSchema("c", row.oid, modifier, own_type=row.own is not None)
            parts.append(f"| `{name}` | {_held(column)} | {values} |")
    parts.append("\n## Types with parts\n")
    parts.append("| Postgres | Arrow | DuckDB | JSON |\n|---|---|---|---|")
    for name, type_ in _types_with_parts().items():
        column = ColumnSchema("c", 0, type=type_, nested="native", own_type=True)
        parts.append(f"| {name} | {_held(column)} |")
    parts.append(_TYPES_END.replace("{stays_text}\n", "".join(_stays_text())))
    parts[-1] += "".join(_keys()) + _ANY_KEY
    return "\n".join(parts)


def _edges(row: BuiltIn) -> str:
    """The values at the edges of a type, each with what becomes of it unless it is held."""
    edges = row.edges_for(own_type=True)
    plain = [_code(edge.text) for edge in edges if edge.becomes == "itself"]
    others = [
        f"{_code(edge.text)}: {edge.becomes}{' (odd)' if edge.is_odd else ''}"
        for edge in edges
        if edge.becomes != "itself"
    ]
    return "<br>".join([", ".join(plain), *others] if plain else others)


def _modifiers(row: BuiltIn) -> dict[str, int]:
    """The ways to declare the type that are held in ways of their own."""
    if row.bound != "digits":
        return {row.name: -1}
    found = {row.name: -1}
    for precision, scale in ((12, 2), (60, 20), (100, 0)):
        found[f"{row.name}({precision},{scale})"] = (precision << 16 | scale) + 4
    return found


def _types_with_parts() -> dict[str, PgType]:
    integer, text = _scalar("integer"), _scalar("text")
    range_ = Range(0, "int4range", integer)
    pair = Composite(0, "pair", (Attribute("a", integer), Attribute("b", text)))
    return {
        "array: `integer[]`": Array(0, "integer[]", integer),
        "array: `integer[][]`": Array(0, "integer[]", integer, dimensions=2),
        "range: `int4range`": range_,
        "multirange: `int4multirange`": Multirange(0, "int4multirange", range_),
        "composite: `(a integer, b text)`": pair,
        "enum": Enum(0, "mood", ("sad", "happy")),
        "`hstore`": Scalar(0, "hstore", extension="hstore"),
    }


def _scalar(name: str) -> Scalar:
    row = next(row for row in REGISTRY.values() if row.name == name)
    return Scalar(row.oid, row.name)


def _held(column: ColumnSchema) -> str:
    form = form_of(column)
    return f"`{form.arrow}` | `{declared_type(column)}` | {form.json}"


def _code(text: str) -> str:
    """A value in code, such as fits into a cell of a table."""
    if not text.strip():
        return f"{len(text)} spaces" if text else "the empty text"
    if len(text) > 60:
        text = f"{text[:20]}...{text[-10:]} ({len(text)} characters)"
    shown = text.replace("\t", "\\t").replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`"


def _stays_text() -> Iterator[str]:
    for row in REGISTRY.values():
        if row.stays_text:
            yield f"| `{row.name}` | {row.stays_text} |\n"


def _keys() -> Iterator[str]:
    for row in REGISTRY.values():
        if row.text_tells:
            yield f"| `{row.name}` | the table stops: the text contains {row.text_tells} |\n"
        elif any(edge.is_odd for edge in row.edges):
            yield f"| `{row.name}` | found by its value; an odd value stops the table |\n"
    yield "| `numeric(p,s)` | found by its value; `NaN`, its only odd value, is null |\n"


if __name__ == "__main__":
    main()
