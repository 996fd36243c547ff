"""The SQL migrations of `PostgresStore`, run in the order of their numbers.

Each runs once, with the store's schema as `search_path`. One that was released is never edited:
what it should have done is done by the next.
"""
