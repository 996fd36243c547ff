"""How any Postgres is reached: what every session pins, and what a failure means."""
