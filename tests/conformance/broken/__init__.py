"""Stores and destinations with one defect each, which the suites must find (`test_broken.py`)."""
