"""What can go wrong with an experiment as a whole."""

from __future__ import annotations

from simulation.scenario.errors import ScenarioError

__all__ = ["ExperimentError", "WorkersLost"]


class ExperimentError(ScenarioError):
    """An experiment cannot be done as it was asked for; one line that says what to change."""


class WorkersLost(RuntimeError):
    """The processes that simulate keep dying. Finished results are in the journal."""
