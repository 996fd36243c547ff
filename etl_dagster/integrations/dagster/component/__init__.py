"""A pipeline as a component of a `dg` project: the same definitions, described by YAML."""
