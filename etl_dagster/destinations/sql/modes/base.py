"""What every mode does."""

from __future__ import annotations

from abc import ABC, abstractmethod

from etl_dagster.destinations.collapse import Collapsed
from etl_dagster.destinations.sql.session import Session
from etl_dagster.destinations.sql.tables import Target
from etl_dagster.model.events import TableChanges, TruncateEvent


class Mode(ABC):
    """Applies changes of one table. Both methods return how many of its rows they made obsolete:
    deleted them, or wrote them again."""

    @abstractmethod
    def change(
        self, session: Session, target: Target, changes: TableChanges, collapsed: Collapsed | None
    ) -> int:
        """Apply inserts, updates and deletes.

        Args:
            changes: all of them, in order; under the schema that `target` has.
            collapsed: what they amount to; None for a table without a key.

        Raises:
            TableWriteFailed: the table is none that this can be done with.
        """

    @abstractmethod
    def truncate(self, session: Session, target: Target, event: TruncateEvent) -> int:
        """Apply a truncate."""
