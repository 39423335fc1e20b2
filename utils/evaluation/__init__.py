"""Evaluation: applying systems, scoring, metrics and suites of them."""
