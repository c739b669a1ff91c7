"""Swarms against the real API or our mock of it."""
