"""The shape of the house: imports point down, and nothing runs in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import etl_dagster

_PACKAGE = Path(etl_dagster.__file__).parent

#: From the ground up. A module may import from its own floor and from those before it.
FLOORS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "etl_dagster",
            "etl_dagster.errors",
            "etl_dagster.backoff",
            "etl_dagster.words",
            "etl_dagster.lazy",
            "etl_dagster.log_fields",
            "etl_dagster.lsn",
            "etl_dagster.table_name",
            "etl_dagster.table_pattern",
            "etl_dagster.threads",
        }
    ),
    frozenset({"etl_dagster.pg"}),
    frozenset(
        {
            "etl_dagster.kinds",
            "etl_dagster.config",
            "etl_dagster.config.shape",
            "etl_dagster.config.text",
        }
    ),
    frozenset({"etl_dagster.values"}),
    frozenset({"etl_dagster.model"}),
    frozenset({"etl_dagster.shaping"}),
    frozenset({"etl_dagster.protocol"}),
    frozenset({"etl_dagster.source"}),
    frozenset({"etl_dagster.runtime"}),
    frozenset({"etl_dagster.stores", "etl_dagster.destinations"}),
    frozenset({"etl_dagster.assembly"}),
    frozenset({"etl_dagster.in_process"}),
    frozenset({"etl_dagster.integrations", "etl_dagster.testing"}),
    frozenset({"etl_dagster.embedding", "etl_dagster.dagster", "etl_dagster.meltano"}),
    frozenset({"etl_dagster.demo"}),
    frozenset({"etl_dagster.cli", "etl_dagster.definitions", "etl_dagster.replicator"}),
)

#: The same inside of the runtime; what isn't named stands on its ground.
RUNTIME_FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"tables"}),
    frozenset({"membership", "checking"}),
    frozenset({"showing"}),
    frozenset({"worker_parts"}),
    frozenset({"streaming"}),
    frozenset({"copy_source"}),
    frozenset({"comparing"}),
    frozenset({"copying"}),
    frozenset({"pipeline"}),
    frozenset({"fan_out", "moving", "together"}),
)

#: The same inside of the integrations: the tables of a pipeline and the streams of ``meltano run``
#: are two products, and only the second builds on the first.
INTEGRATION_FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"meltano"}),
    frozenset({"dagster"}),
    frozenset({"dagster_meltano"}),
)

FLOORS_OF_ROOMS = {"runtime": RUNTIME_FLOORS, "integrations": INTEGRATION_FLOORS}

#: Names what is public without importing it: what it imports is for type checkers only.
FRONT_DOOR = "etl_dagster"

#: Rooms on one floor that still have no business with each other.
STRANGERS = (("etl_dagster.stores", "etl_dagster.destinations"),)

#: (importer, imported) that may point up, each with its reason. Keep it short.
EXEMPT: dict[tuple[str, str], str] = {}


def modules() -> list[str]:
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def file_of(module: str) -> Path:
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room(module) in rooms:
            return number
    pytest.fail(f"{module} has no floor: name its room in FLOORS")


@cache
def imports(module: str) -> tuple[tuple[str, int], ...]:
    """Modules of the package that this one imports, with the line.

    Everywhere counts: in functions, and for the type checker only.
    """
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(file_of(module).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write imports in full"
            base = node.module or ""
            # `from package import name` imports a module where the name is one.
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in KNOWN else base for name in full]
        else:
            continue
        for name in names:
            if name == "etl_dagster" or name.startswith("etl_dagster."):
                yield name, node.lineno


MODULES = modules()
KNOWN = frozenset(MODULES)


# One test for all modules, here and below: there are hundreds, and a test costs more than a module.


def test_imports_point_down() -> None:
    wrong = [
        f"{module}, line {line}: {imported}"
        for module in MODULES
        for imported, line in imports(module)
        if floor(imported) > floor(module)
        and (module, imported) not in EXEMPT
        and module != FRONT_DOOR
    ]
    assert not wrong, f"imports from a floor above: {'; '.join(wrong)}"


def floor_inside(module: str, floors: tuple[frozenset[str], ...]) -> int:
    """The number in `floors`, -1 of the room's ground."""
    name = module.split(".")[2]
    return next((n for n, rooms in enumerate(floors) if name in rooms), -1)


def test_imports_point_down_inside_of_a_room() -> None:
    wrong = []
    for module in MODULES:
        floors = FLOORS_OF_ROOMS.get(module.split(".")[1]) if module.count(".") > 1 else None
        wrong += [
            f"{module}, line {line}: {imported}"
            for imported, line in imports(module)
            if floors is not None
            and imported.startswith(f"{room(module)}.")
            and floor_inside(imported, floors) > floor_inside(module, floors)
        ]
    assert not wrong, f"imports from a floor above: {'; '.join(wrong)}"


def test_strangers_stay_strangers() -> None:
    """The runtime knows a destination, never a DuckDB; a store knows no destination at all."""
    both_ways = {*STRANGERS, *((other, one) for one, other in STRANGERS)}
    wrong = [
        f"{module}, line {line}: {imported}"
        for module in MODULES
        for imported, line in imports(module)
        if (room(module), room(imported)) in both_ways
    ]
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("floor_rooms", FLOORS, ids=lambda rooms: min(rooms))
def test_no_floor_has_a_circle(floor_rooms: frozenset[str]) -> None:
    """Importing any module first must work; a package's own `__init__` may gather its modules."""
    here = [m for m in MODULES if room(m) in floor_rooms and m != FRONT_DOOR]
    graph = {module: {name for name, _ in imports(module) if name in here} for module in here}
    for package in [module for module in here if file_of(module).name == "__init__.py"]:
        # `from package.module import x` doesn't need what the package gathers to be complete.
        for module in here:
            graph[module].discard(package)
    while free := {module for module, needed in graph.items() if not needed}:
        graph = {m: needed - free for m, needed in graph.items() if m not in free}
    assert not graph, f"these import each other: {', '.join(sorted(graph))}"


def test_every_exemption_is_still_needed() -> None:
    needed = {
        (module, imported)
        for module in MODULES
        for imported, _ in imports(module)
        if floor(imported) > floor(module)
    }
    assert set(EXEMPT) == needed & set(EXEMPT)
