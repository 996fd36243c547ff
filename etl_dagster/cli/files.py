"""Files that commands write."""

from __future__ import annotations

from pathlib import Path

from etl_dagster.errors import EtlError


def write_text(path: Path, text: str, *, option: str) -> None:
    """Write the whole file.

    Args:
        option: names the file on the command line.

    Raises:
        EtlError: the file can't be written.
    """
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise EtlError(
            f"{path} can't be written: {error.strerror}",
            solution=f"Name another file with {option}.",
        ) from error
