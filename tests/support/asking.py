"""Questions to the source that something happens before or after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from etl_dagster.source.control import SourceControl


def control_with(
    *,
    before: Callable[[str], None] = lambda asked: None,
    after: Callable[[str], None] = lambda asked: None,
) -> Callable[..., SourceControl]:
    """What makes a pipeline's connections for questions, in place of `SourceControl`.

    Args:
        before, after: called with what is asked, such as ``reading tables' names``; may raise.
    """

    class Control(SourceControl):
        def ask(self, what: str, question: Any, *args: Any, **kwargs: Any) -> Any:
            before(what)
            answer = super().ask(what, question, *args, **kwargs)
            after(what)
            return answer

    return Control
