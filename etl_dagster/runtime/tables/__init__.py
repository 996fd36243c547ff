"""Which schema, types, mode and shape a table has, and what makes a new copy of it due."""
