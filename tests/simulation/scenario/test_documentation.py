"""docs/scenarios.md names every field of the language, and its examples are scenarios."""

import re
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from simulation.scenario.spec import Scenario, load_scenario, parse_scenario, presets
from simulation.scenario.workload import compile_workload

PAGE = (Path(__file__).parents[3] / "docs" / "scenarios.md").read_text(encoding="utf-8")
OVERRIDES: dict[str, dict[str, object]] = yaml.safe_load(
    PAGE.split("```yaml overrides\n")[1].split("```")[0]
)
# Inline code alone: a field that only an example shows is not explained.
NAMED = set(
    re.findall(
        r"[a-z0-9_]+",
        " ".join(re.findall(r"`[^`]+`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))),
    )
)
# Documented in detail where they belong, with the endpoint.
ELSEWHERE = {"service", "limits", "overload", "faults", "prompt_cache", "lines"}


def models(annotation: Any) -> set[type[BaseModel]]:
    """Every model of the language that a value of this type can contain."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        found = {annotation}
        for name, field in annotation.model_fields.items():
            if annotation.__name__ == "EndpointProfile" and name in ELSEWHERE:
                continue
            found |= models(field.annotation)
        return found
    if get_origin(annotation) is Annotated:
        return models(get_args(annotation)[0])
    return {model for part in get_args(annotation) for model in models(part)}


@pytest.mark.parametrize("model", sorted(models(Scenario), key=repr))
def test_every_field_and_kind_is_on_the_page(model: type[BaseModel]) -> None:
    fields = {field.alias or name for name, field in model.model_fields.items()}
    kind = model.model_fields.get("kind")
    kinds = set(get_args(kind.annotation)) if kind is not None else set()
    assert (fields | kinds) - {"kind"} <= NAMED


def test_the_first_example_is_a_scenario() -> None:
    example = PAGE.split("```yaml\n")[1].split("```")[0]
    assert len(compile_workload(parse_scenario(example))) > 0


@pytest.mark.parametrize("system", OVERRIDES)
def test_every_textbook_system_is_the_preset_with_these_overrides(system: str) -> None:
    scenario = load_scenario("mm1", {**OVERRIDES[system], "horizon_s": 50})
    assert len(compile_workload(scenario)) > 0
    assert "mm1" in presets()
