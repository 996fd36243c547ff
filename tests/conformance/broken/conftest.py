"""A broken class runs only the check that must fail; the others run all checks."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def is_wanted(item: pytest.Item) -> bool:
        promise = getattr(getattr(item, "cls", None), "promise", None)
        return promise is None or promise == getattr(item, "originalname", None)

    items[:] = filter(is_wanted, items)
