"""What destinations have in common that are databases with transactions.

A database adds a `Dialect`, a `Session` and a `SqlDestination`: see "Destinations in SQL" in
ARCHITECTURE.md.
"""
