"""Translates the engine into the vocabulary of the systems around it."""
