"""The errors of this folder: what was wrong, where, and what to do, in one line."""

from __future__ import annotations

__all__ = ["ReportError"]


class ReportError(ValueError):
    """A run folder cannot be read as a run, or a report cannot be made of it."""
