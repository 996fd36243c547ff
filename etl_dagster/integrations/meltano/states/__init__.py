"""How Meltano states are kept in Postgres: texts, history, locks and leases.

It knows neither Meltano nor Dagster; `storage.StateStorage` is what others use.
"""
