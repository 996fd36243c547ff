"""Implementations of the destination contract."""
