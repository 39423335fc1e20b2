"""Faults tried on the real commands: `python -m tests.faults [--only PATTERN]`, by hand."""
