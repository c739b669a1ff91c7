"""The front door of the scenario language: `load_scenario("chat")`, `load_scenario("mine.yaml", {"seed": 7})`.

A scenario is YAML text, a mapping, or the name of a preset; overrides go by dotted field path. Whatever is wrong comes
out as one line that names the file, the field, what was found, and what is allowed or nearest.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from reference_impl.deployment import DeploymentSpec
from simulation.scenario.arrival_spec import TraceArrivals
from simulation.scenario.diagnosis import diagnose, unknown
from simulation.scenario.endpoint import EndpointProfile
from simulation.scenario.errors import ScenarioError, TraceError, WorkloadError
from simulation.scenario.schema import (
    SLO,
    CpuSpec,
    Demand,
    NetworkSpec,
    ProcessCpu,
    ProcessKind,
    Scenario,
    StationSpec,
    scenario_sha256,
)
from simulation.scenario.traces import read_trace, slice_trace
from simulation.scenario.workload_spec import WorkloadSpec

__all__ = [
    "SLO",
    "CpuSpec",
    "Demand",
    "DeploymentSpec",
    "EndpointProfile",
    "NetworkSpec",
    "ProcessCpu",
    "ProcessKind",
    "Scenario",
    "ScenarioError",
    "StationSpec",
    "TraceError",
    "WorkloadError",
    "WorkloadSpec",
    "load_scenario",
    "override",
    "parse_overrides",
    "parse_scenario",
    "presets",
    "scenario_sha256",
    "to_yaml",
    "with_trace",
]


def presets() -> dict[str, str]:
    """Names of the shipped scenarios with their one-line descriptions, sorted by name."""
    folder = resources.files("simulation.scenario") / "presets"
    found: dict[str, str] = {}
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            document = yaml.load(file.read_text("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
            found[file.name.removesuffix(".yaml")] = str(document.get("description", ""))
    return found


def load_scenario(
    name_or_path: str | Path, overrides: Mapping[str, object] | None = None
) -> Scenario:
    """The preset of that name or the scenario in that YAML file, with `overrides` by dotted field path.

    Raises ScenarioError.
    """
    name = str(name_or_path)
    shipped = resources.files("simulation.scenario") / "presets" / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        scenario = parse_scenario(shipped.read_text("utf-8"), origin=f"preset {name}", name=name)
        return override(scenario, overrides or {})
    path = Path(name_or_path)
    if path.is_dir():
        raise ScenarioError(f"{path}: a folder; give the path of a YAML file")
    if not path.exists():
        if "/" in name or path.suffix in (".yaml", ".yml", ".json"):
            raise ScenarioError(
                f"{path}: no such file; give the path of a YAML file, or one of {', '.join(presets())}"
            )
        raise ScenarioError(
            f"{unknown('scenario', name, presets())}; or give the path of a YAML file"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {error}") from None
    scenario = parse_scenario(text, origin=str(path), name=path.stem, folder=path.parent)
    return override(scenario, overrides or {})


def parse_scenario(
    text: str, *, origin: str = "scenario", name: str = "custom", folder: Path | None = None
) -> Scenario:
    """A scenario from YAML text. `folder`: where relative trace paths begin. Raises ScenarioError that names `origin`."""
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ScenarioError(f"{origin}: {line}not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{origin}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ScenarioError(
            f"{origin}: expected fields (name: value) at the top level, found {type(document).__name__}"
        )
    document.setdefault("name", name)
    if folder is not None:
        _anchor_files(document, folder)
    return _validate(document, origin)


def override(scenario: Scenario, overrides: Mapping[str, object]) -> Scenario:
    """The scenario with the fields at these dotted paths replaced; raises ScenarioError for an unknown path."""
    if not overrides:
        return scenario
    origin = f"{scenario.name} with overrides"
    document = scenario.model_dump(mode="json")
    for path, value in overrides.items():
        try:
            _replace_field(document, path, value)
        except ScenarioError as error:
            raise ScenarioError(f"{origin}: {error}") from None
    return _validate(document, origin)


def parse_overrides(assignments: Iterable[str]) -> dict[str, object]:
    """`["workload.arrivals.rate_per_s=5", ...]` as a mapping; values are YAML. Raises ScenarioError."""
    parsed: dict[str, object] = {}
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals or not path.strip():
            raise ScenarioError(f"override {assignment!r}: expected FIELD.PATH=VALUE")
        try:
            parsed[path.strip()] = yaml.load(value, Loader=_Loader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError:
            raise ScenarioError(f"override {assignment!r}: the value is not YAML") from None
    return parsed


def with_trace(
    scenario: Scenario, path: str | Path, *, speed: float = 1.0, limit: int | None = None
) -> Scenario:
    """The scenario under a recorded trace instead of its own arrivals, with the horizon just after its last request.

    Raises ScenarioError (TraceError for the file).
    """
    arrivals = {"kind": "trace", "path": str(path), "speed": speed, "limit": limit}
    traced = override(scenario, {"workload.arrivals": arrivals})
    spec = traced.workload.arrivals
    assert isinstance(spec, TraceArrivals)
    last_s = float(slice_trace(read_trace(spec.path), spec).arrival_s[-1])
    return override(traced, {"horizon_s": last_s + 1e-3})


def to_yaml(scenario: Scenario) -> str:
    """The whole scenario as YAML that `parse_scenario` reads back to an equal one."""
    text: str = yaml.safe_dump(
        scenario.model_dump(mode="json"), sort_keys=False, allow_unicode=True
    )
    return text


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice (YAML would keep the last one silently)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"field {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _validate(document: dict[str, Any], origin: str) -> Scenario:
    try:
        return Scenario.model_validate(document)
    except ValidationError as error:
        raise ScenarioError(f"{origin}: {diagnose(error, Scenario, document)}") from None


def _anchor_files(document: dict[str, Any], folder: Path) -> None:
    """Relative paths in a file (a trace, a profile) are relative to the file."""
    workload = document.get("workload")
    arrivals = workload.get("arrivals") if isinstance(workload, dict) else None
    if isinstance(arrivals, dict) and isinstance(arrivals.get("path"), str):
        arrivals["path"] = str(folder / arrivals["path"])
    endpoint = document.get("endpoint")
    if isinstance(endpoint, str) and endpoint.endswith((".yaml", ".yml")):
        document["endpoint"] = str(folder / endpoint)
    elif isinstance(endpoint, dict) and str(endpoint.get("profile")).endswith((".yaml", ".yml")):
        endpoint["profile"] = str(folder / endpoint["profile"])


def _replace_field(document: dict[str, Any], path: str, value: object) -> None:
    """Set `path` in a full dump, in which every field of the language is present."""
    here: Any = document
    parts = path.split(".")
    for depth, part in enumerate(parts, start=1):
        key: str | int = part
        if isinstance(here, list) and part.isdecimal() and int(part) < len(here):
            key = int(part)
        elif not (isinstance(here, dict) and part in here):
            raise ScenarioError(_unknown_path(document, here, path, ".".join(parts[: depth - 1])))
        if depth == len(parts):
            # A copy: a later path may lead into it, and the caller's own is not to change.
            here[key] = copy.deepcopy(value)
        else:
            here = here[key]


def _unknown_path(document: dict[str, Any], here: Any, path: str, parent: str) -> str:
    """The nearest path of all, or else what there is at `parent`, which is as far as `path` leads: to `here`."""
    if not isinstance(here, (dict, list)):
        return f"unknown field {path!r}: {parent} holds a value and no fields"
    near = [known for known in _paths(document) if not path.startswith(f"{known}.")]
    if difflib.get_close_matches(path, near, n=1):
        return unknown("field", path, near)
    keys = here if isinstance(here, dict) else range(len(here))
    return unknown("field", path, [f"{parent}.{key}".removeprefix(".") for key in keys])


def _paths(node: Any, prefix: str = "") -> list[str]:
    items: Iterable[tuple[Any, Any]]
    if isinstance(node, dict):
        items = node.items()
    elif isinstance(node, list):
        items = enumerate(node)
    else:
        return []
    found: list[str] = []
    for key, child in items:
        path = f"{prefix}{key}"
        found.append(path)
        found.extend(_paths(child, f"{path}."))
    return found
