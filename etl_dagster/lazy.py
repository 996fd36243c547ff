"""What is imported when it is first used: names of a package, and modules of others."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any


def gathered(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The ``__getattr__`` of a package, so that importing one of its modules loads no other.

    Args:
        modules: by name, the module of the package that defines it.

    Source: PEP 562, "Module __getattr__ and __dir__".
    """

    def attribute(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    return attribute


@contextlib.contextmanager
def imported_later(name: str) -> Iterator[None]:
    """What imports a module in the block has it loaded when something of it is used.

    For what a library imports and few of its users need. `importlib.util.LazyLoader` doesn't do:
    with it, an import loads the module. After the block, an import loads it as ever.

    Args:
        name: of a module inside of a package, which is loaded at once.
    """
    package, _, child = name.rpartition(".")
    if name in sys.modules:
        yield
        return
    parent = importlib.import_module(package)
    sys.modules[name] = module = _Later(name)
    setattr(parent, child, module)
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]


class _Later(ModuleType):
    """Stands where a module is to be, until it is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)
