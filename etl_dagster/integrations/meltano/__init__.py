"""Meltano: a PostgreSQL state backend for it, and every table's position as a state there.

`settings` is loaded by every `meltano` command through entry points, so nothing is imported here.
"""
