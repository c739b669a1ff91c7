"""The LLM endpoint's public names; the behaviour is in `simulation.models.endpoint`."""

from __future__ import annotations

from simulation.models.endpoint.attempt import AttemptRecord, EndpointStatistics
from simulation.models.endpoint.endpoint import LLMEndpoint

__all__ = ["AttemptRecord", "EndpointStatistics", "LLMEndpoint"]
