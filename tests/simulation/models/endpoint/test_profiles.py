"""Profiles as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulation.scenario.endpoint import ProfileError, load_profile, shipped_profiles


@pytest.mark.parametrize("name", shipped_profiles())
def test_each_shipped_profile_loads_and_says_that_it_is_synthetic(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.synthetic
    assert profile.source


def test_a_profile_survives_being_written_as_json(tmp_path: Path) -> None:
    for name in shipped_profiles():
        path = tmp_path / f"{name}.json"
        path.write_text(load_profile(name).model_dump_json())
        assert load_profile(path) == load_profile(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour: Extra inputs"),
        ({"service": {"kind": "oracle"}}, "service: Input tag 'oracle'"),
        ({"speedup": 0}, "speedup: Input should be greater than 0; found 0"),
        ({"faults": [{"kind": "418", "probability": 1}]}, "faults.0.kind: Input should be '400'"),
        ({"limits": {"requests_per_min": -1}}, "limits.requests_per_min: Input should be greater"),
    ],
)
def test_a_wrong_field_is_one_line_that_names_file_and_field(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(load_profile("fast").model_dump(mode="json") | change))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: {message}")
    assert "\n" not in said


def test_a_file_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("service: {kind: provider\n  x: [")
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)
