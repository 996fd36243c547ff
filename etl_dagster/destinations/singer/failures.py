"""The ways in which a target fails."""

from __future__ import annotations

from etl_dagster.errors import DestinationError


class TargetMissing(DestinationError):
    """There is no such program, or it can't be run."""


class TargetFailed(DestinationError):
    """The target ended, and what it was given can't count as written."""

    solution = (
        "Read the target's output, above; set destination.stderr_file to see all of it. The "
        "pipeline starts the target again by itself, from its last STATE."
    )
    retryable = True


class TargetStalled(TargetFailed):
    """The target did nothing for too long, and was ended."""

    solution = (
        "Find out what the target waits for, such as a lock. If it needs longer for one load, "
        "raise destination.stalled_after_seconds, or lower batch.max_bytes and copy.chunk_rows. "
        "The pipeline starts it again by itself."
    )


class TargetKeptNothing(TargetFailed):
    """The target ended without an error, but never confirmed what it was given."""

    solution = (
        "A target must write the last STATE back to its stdout before it ends. Check its settings, "
        "such as a stream map that drops STATE; else this target can't be used. The pipeline tries "
        "again by itself."
    )


class TargetNotAsked(TargetFailed):
    """The pipeline stops, so the target isn't given anything more."""

    solution = "No action needed: the next start sends it."
