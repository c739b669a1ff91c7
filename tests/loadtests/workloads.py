"""Compiled workloads for tests, from a line of YAML."""

from __future__ import annotations

from simulation.scenario.schema import Scenario
from simulation.scenario.spec import parse_scenario
from simulation.scenario.workload import CompiledWorkload, compile_workload


def small(arrivals: str, *, horizon_s: float, drain_s: float = 5.0, more: str = "") -> Scenario:
    """A scenario with these arrivals (YAML) and short prompts; `more` is YAML at the top level."""
    return parse_scenario(
        f"""
horizon_s: {horizon_s}
drain_s: {drain_s}
workload:
  arrivals: {arrivals}
  input_tokens: {{kind: constant, value: 50}}
  output_tokens: {{kind: constant, value: 5}}
{more}
"""
    )


def compiled(arrivals: str, *, horizon_s: float) -> CompiledWorkload:
    return compile_workload(small(arrivals, horizon_s=horizon_s))
