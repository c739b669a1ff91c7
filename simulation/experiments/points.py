"""Which scenarios an experiment tries: values for fields of a scenario, by their dotted paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from simulation.experiments.errors import ExperimentError
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import override, parse_overrides

__all__ = ["field_value", "grid", "parse_vary", "read_points", "seeds", "variants"]

Point = dict[str, object]


def parse_vary(assignments: Iterable[str]) -> dict[str, list[object]]:
    """`["workload.arrivals.rate_per_s=5,10,20", ...]`: values separated by commas, or a YAML list."""
    varied: dict[str, list[object]] = {}
    for path, value in parse_overrides(assignments).items():
        if isinstance(value, str) and "," in value:
            value = [yaml.safe_load(part) for part in value.split(",")]
        varied[path] = value if isinstance(value, list) else [value]
        if not varied[path]:
            raise ExperimentError(f"{path}: no values to vary it over")
    return varied


def grid(varied: Mapping[str, Sequence[object]]) -> list[Point]:
    """Every combination, the last field varying fastest."""
    return [dict(zip(varied, values, strict=True)) for values in product(*varied.values())]


def read_points(path: Path) -> list[Point]:
    """A list of points from YAML or JSON: one mapping of field paths to values each."""
    try:
        points: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if (
        not isinstance(points, list)
        or not points
        or not all(isinstance(p, dict) and p for p in points)
    ):
        raise ExperimentError(f"{path}: expected a list of one or more mappings (field: value)")
    return points


def variants(scenario: Scenario, points: Iterable[Point]) -> list[Scenario]:
    """The scenario of each point; raises ScenarioError for the first that is none (an unknown field names the nearest)."""
    return [override(scenario, point) for point in points]


def seeds(scenario: Scenario, count: int, first: int = 0) -> list[int]:
    """Seeds number `first` to `first + count` of the scenario's replications; the first is its own seed.

    The same for every variant: common random numbers.
    """
    return [(scenario.seed + first + number) % 2**63 for number in range(count)]


def field_value(scenario: Scenario, path: str) -> object:
    """What stands at `path`; raises ScenarioError where there is no such field."""
    here: Any = scenario.model_dump(mode="json")
    override(scenario, {path: _look_up(here, path)})
    return _look_up(here, path)


def _look_up(here: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            here = here[int(part)]
        else:
            return None
    return here
