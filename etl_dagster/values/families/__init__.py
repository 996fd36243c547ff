"""The built-in types, a family in each module; `registry` puts them together."""
