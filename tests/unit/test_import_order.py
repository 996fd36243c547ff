"""The shape of the code: imports point down, and nothing runs in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import etl_dagster

_PACKAGE = Path(etl_dagster.__file__).parent

#: From the lowest up. A module may import from its own layer and from those before it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset(
        {
            "etl_dagster",
            "etl_dagster.errors",
            "etl_dagster.backoff",
            "etl_dagster.words",
            "etl_dagster.lazy",
            "etl_dagster.log_fields",
            "etl_dagster.lsn",
            "etl_dagster.read_ahead",
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

#: The same inside of the runtime; what is not named is below them.
RUNTIME_LAYERS: tuple[frozenset[str], ...] = (
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
INTEGRATION_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"meltano"}),
    frozenset({"dagster"}),
    frozenset({"dagster_meltano"}),
)

#: And inside of the second of them.
DAGSTER_LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"resources"}),
    frozenset({"tables"}),
    frozenset({"copies"}),
    frozenset({"assets"}),
    frozenset({"checks"}),
    frozenset({"sensor", "jobs"}),
    frozenset({"parts"}),
    frozenset({"build"}),
    frozenset({"component"}),
)

LAYERS_OF_PACKAGES = {
    "etl_dagster.runtime": RUNTIME_LAYERS,
    "etl_dagster.integrations": INTEGRATION_LAYERS,
    "etl_dagster.integrations.dagster": DAGSTER_LAYERS,
}

#: Names what is public without importing it: what it imports is for type checkers only.
FRONT_DOOR = "etl_dagster"

#: Packages in one layer that still have no business with each other.
STRANGERS = (("etl_dagster.stores", "etl_dagster.destinations"),)

#: (importer, imported) that may point up, each with its reason. Keep it short.
EXEMPT: dict[tuple[str, str], str] = {
    (
        "etl_dagster.integrations.dagster.resources.etl_resource",
        "etl_dagster.integrations.dagster.copies.table_asset",
    ): "a resource offers the body of an asset as a method, imported when it is called",
}


def modules() -> list[str]:
    found = []
    for path in sorted(_PACKAGE.rglob("*.py")):
        parts = path.relative_to(_PACKAGE.parent).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return found


def file_of(module: str) -> Path:
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def layer(module: str) -> int:
    for number, packages in enumerate(LAYERS):
        if package_of(module) in packages:
            return number
    pytest.fail(f"{module} has no layer: name its package in LAYERS")


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
        if layer(imported) > layer(module)
        and (module, imported) not in EXEMPT
        and module != FRONT_DOOR
    ]
    assert not wrong, f"imports from a layer above: {'; '.join(wrong)}"


def layer_inside(module: str, of: str) -> int:
    """The layer inside of the package `of`; -1 for what no layer names."""
    name = module.removeprefix(f"{of}.").split(".")[0]
    return next((n for n, packages in enumerate(LAYERS_OF_PACKAGES[of]) if name in packages), -1)


def points_up_inside(module: str, imported: str, of: str) -> bool:
    """Whether both are in the package `of`, and the imported one is in a layer above the other."""
    if not (module.startswith(f"{of}.") and imported.startswith(f"{of}.")):
        return False
    return layer_inside(imported, of) > layer_inside(module, of)


def test_imports_point_down_inside_the_package() -> None:
    wrong = [
        f"{module}, line {line}: {imported}"
        for module in MODULES
        for imported, line in imports(module)
        if any(points_up_inside(module, imported, of) for of in LAYERS_OF_PACKAGES)
        and (module, imported) not in EXEMPT
    ]
    assert not wrong, f"imports from a layer above: {'; '.join(wrong)}"


def test_unrelated_packages_do_not_import_each_other() -> None:
    """The runtime knows a destination, never a DuckDB; a store knows no destination at all."""
    both_ways = {*STRANGERS, *((other, one) for one, other in STRANGERS)}
    wrong = [
        f"{module}, line {line}: {imported}"
        for module in MODULES
        for imported, line in imports(module)
        if (package_of(module), package_of(imported)) in both_ways
    ]
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("packages", LAYERS, ids=lambda packages: min(packages))
def test_no_layer_has_a_circle(packages: frozenset[str]) -> None:
    """Importing any module first must work; a package's own `__init__` may gather its modules."""
    here = [m for m in MODULES if package_of(m) in packages and m != FRONT_DOOR]
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
        if layer(imported) > layer(module)
        or any(points_up_inside(module, imported, of) for of in LAYERS_OF_PACKAGES)
    }
    assert set(EXEMPT) == needed & set(EXEMPT)


def test_no_two_classes_have_the_same_name() -> None:
    """Classes of one module only, whose names begin with an underscore, may."""
    places: dict[str, list[str]] = {}
    for path in sorted(Path(etl_dagster.__file__).parent.rglob("*.py")):
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.ClassDef) and not statement.name.startswith("_"):
                places.setdefault(statement.name, []).append(str(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
