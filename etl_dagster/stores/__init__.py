"""Implementations of the store contracts."""
