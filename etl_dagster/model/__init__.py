"""Schemas, events, table states, and the contracts of stores and destinations."""
