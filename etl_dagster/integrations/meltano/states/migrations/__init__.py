"""Numbered SQL files that make the tables of `StateStorage`; braces hold the tables' names."""
