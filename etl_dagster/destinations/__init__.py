"""Implementations of the destination contract.

Import the module of the destination you want; each brings the libraries that it needs.
"""
