"""Answers that need not be computed again."""
