"""Meltano: a PostgreSQL state backend for it.

`settings` is loaded by every `meltano` command through entry points, so nothing is imported here.
"""
