"""A pipeline while it runs."""
