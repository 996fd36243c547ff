"""Implementations of the store contracts.

Import the module of the store you want: `stores.memory` needs nothing but Python,
`stores.postgres` needs psycopg.
"""
