"""A published table as Dagster has it: which there are, where, named how, with what metadata."""
