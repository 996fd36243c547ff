"""Points, and what is made of them."""

from __future__ import annotations

from typing import Final

from etl_dagster.values.families.texts import printed

ROWS: Final = (
    printed(600, "point", "(1,2)", "(NaN,-Infinity)"),
    printed(601, "lseg", "[(1,2),(3,4)]"),
    printed(602, "path", "((1,2),(3,4))", "[(1,2)]"),
    printed(603, "box", "(3,4),(1,2)"),
    printed(604, "polygon", "((1,2),(3,4))"),
    printed(628, "line", "{1,2,3}"),
    printed(718, "circle", "<(1,2),3>"),
)
