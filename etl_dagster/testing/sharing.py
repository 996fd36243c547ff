"""What a destination promises about a copy that several processes make (`shared_copies`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etl_dagster.testing.changes import ORDERS, order
from etl_dagster.testing.subject import DestinationChecks, Subject, needs
from etl_dagster.testing.waiting import all_within


class SharedCopyChecks(DestinationChecks):
    """Two processes write chunks of one copy at the same time."""

    @needs("shared_copies")
    def test_two_processes_write_the_chunks_of_one_copy(self, subject: Subject) -> None:
        """Both write one of the chunks, as happens if one process had stalled."""
        chunks = [[order(10 * index + number) for number in range(5)] for index in range(6)]
        subject.destination.drop_table_for_copy(ORDERS)
        other = subject.another()

        def write(by: Subject, indices: Sequence[int]) -> Callable[[], None]:
            def all_of_them() -> None:
                for index in indices:
                    by.write_chunk(ORDERS, index, chunks[index])

            return all_of_them

        # In turns first, so that both have written a part of the copy before they write at once.
        write(subject, (0,))()
        write(other, (3,))()
        writes = [write(subject, (1, 2)), write(other, (4, 5))]
        all_within(self.patience_s, "writing chunks from two processes", writes)
        subject.write_chunk(ORDERS, 5, chunks[5])
        other.end_copy(ORDERS)

        subject.holds_at_least_once(ORDERS, [row for chunk in chunks for row in chunk])
