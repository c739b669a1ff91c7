"""Runs and sets of runs that answer a question."""
