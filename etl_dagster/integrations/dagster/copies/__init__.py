"""Copies of tables inside steps: by one of them, or shared by several on any executor."""
