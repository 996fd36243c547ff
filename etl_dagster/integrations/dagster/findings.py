"""What a check found, in the two forms in which Dagster takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dagster import AssetCheckEvaluation, AssetCheckResult, AssetCheckSeverity, AssetKey

from etl_dagster.errors import EtlError
from etl_dagster.integrations.dagster.phrases import with_solution


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of one asset."""

    passed: bool
    words: str
    #: Whether it fails with ERROR; else with WARN.
    is_severe: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    #: Two findings of one kind say the same, apart from numbers and times.
    kind: str = ""

    @property
    def outcome(self) -> tuple[bool, bool, str]:
        """What a reader notices at once; equal where only numbers and times differ."""
        return self.passed, self.is_severe, self.kind

    @property
    def severity(self) -> AssetCheckSeverity:
        return AssetCheckSeverity.ERROR if self.is_severe else AssetCheckSeverity.WARN

    def evaluation(self, check_name: str, key: AssetKey) -> AssetCheckEvaluation:
        """The finding as an event outside of runs."""
        return AssetCheckEvaluation(
            asset_key=key,
            check_name=check_name,
            passed=self.passed,
            severity=self.severity,
            description=self.words,
            metadata=dict(self.facts),
        )

    def result(self, check_name: str, key: AssetKey) -> AssetCheckResult:
        """The finding as a step returns it."""
        return AssetCheckResult(
            asset_key=key,
            check_name=check_name,
            passed=self.passed,
            severity=self.severity,
            description=self.words,
            metadata=dict(self.facts),
        )


def not_looked(what: str, error: EtlError) -> Finding:
    """A warning that a check could not be evaluated.

    Args:
        what: how the text begins, such as ``Not compared``.
    """
    words = with_solution(f"{what}: {error.reason}", error.solution)
    return Finding(False, words, kind=f"{what}: {type(error).__name__}")
