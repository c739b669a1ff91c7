"""The error tree of the scenario language: one line that says what was wrong, where, and what to do."""

from __future__ import annotations

__all__ = ["ScenarioError", "TraceError", "WorkloadError"]


class ScenarioError(ValueError):
    """A scenario cannot be used."""


class TraceError(ScenarioError):
    """A trace file cannot be read; the message names the file and the line."""


class WorkloadError(ScenarioError):
    """A compiled workload cannot be made, or its file is damaged."""
