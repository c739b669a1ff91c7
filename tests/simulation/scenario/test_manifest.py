"""The manifest of a run folder."""

from pathlib import Path

import pytest

from simulation.scenario.errors import ScenarioError
from simulation.scenario.manifest import MANIFEST_NAME, Manifest
from simulation.scenario.spec import load_scenario, scenario_sha256


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    scenario = load_scenario("demo")
    manifest = Manifest(
        world="live",
        scenario=scenario.model_dump(mode="json"),
        scenario_sha256=scenario_sha256(scenario),
        workload_sha256="ab",
        seed=1,
        versions={"python": "3.11"},
        machine={"cores": 2},
        t0_monotonic_s=12.5,
        notes=("first",),
        validity={"lag_p99_s": 0.002, "valid": True},
    )
    assert manifest.write(tmp_path) == tmp_path / MANIFEST_NAME
    assert Manifest.read(tmp_path) == manifest
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST_NAME]


def test_the_scenario_of_a_manifest_is_the_scenario(tmp_path: Path) -> None:
    scenario = load_scenario("burst")
    Manifest(
        world="virtual",
        scenario=scenario.model_dump(mode="json"),
        scenario_sha256=scenario_sha256(scenario),
        workload_sha256="ab",
        seed=1,
    ).write(tmp_path)
    stored = Manifest.read(tmp_path)
    assert not stored.complete
    again = type(scenario).model_validate(stored.scenario)
    assert again == scenario
    assert scenario_sha256(again) == stored.scenario_sha256


def test_a_folder_without_a_valid_manifest_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"not a run folder: it has no manifest\.json"):
        Manifest.read(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text('{"world": "dream"}')
    with pytest.raises(ScenarioError, match="not a manifest: "):
        Manifest.read(tmp_path)
