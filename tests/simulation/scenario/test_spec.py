"""Scenario files: presets, overrides, round trips, and one clear line for whatever is wrong."""

import copy
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from simulation.scenario.spec import (
    ScenarioError,
    load_scenario,
    override,
    parse_overrides,
    parse_scenario,
    presets,
    scenario_sha256,
    to_yaml,
    with_trace,
)
from simulation.scenario.workload import compile_workload

MINIMAL = "workload: {arrivals: {kind: poisson, rate_per_s: 2}}\nhorizon_s: 10\n"


def failure(text: str) -> str:
    """The message that `text` is refused with."""
    with pytest.raises(ScenarioError) as raised:
        parse_scenario(text, origin="mine.yaml")
    return str(raised.value)


def test_every_preset_loads_compiles_and_describes_itself_in_one_line() -> None:
    assert {"demo", "chat", "agents", "burst", "workers", "day"} <= presets().keys()
    for name, description in presets().items():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.description == description
        assert 10 < len(description) < 140
        assert len(compile_workload(override(scenario, {"horizon_s": 30}))) > 0


@pytest.mark.parametrize("name", sorted(presets()))
def test_a_scenario_survives_the_way_through_yaml(name: str) -> None:
    scenario = load_scenario(name)
    again = parse_scenario(to_yaml(scenario))
    assert again == scenario
    assert scenario_sha256(again) == scenario_sha256(scenario)


def test_a_file_is_named_after_its_stem_and_defaults_are_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "tuesday.yaml"
    path.write_text(MINIMAL)
    scenario = load_scenario(path)
    assert scenario.name == "tuesday"
    assert scenario.endpoint.name == "sonnet-class"
    assert scenario.workload.prompts.kind == "distinct"


def test_a_scenario_cannot_be_changed() -> None:
    scenario = parse_scenario(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        scenario.horizon_s = 20  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        scenario.workload.arrivals.kind = "gamma"  # type: ignore[misc]


def test_zero_switches_off_cpu_and_network() -> None:
    scenario = parse_scenario(MINIMAL + "cpu: 0\nnetwork: 0\n")
    assert scenario.cpu.demand("gateway", "parse").base_s == 0
    assert scenario.cpu.demand("instance", "chunk").base_s == 0
    assert scenario.network.client_gateway_s.mean() == 0
    assert parse_scenario(MINIMAL).cpu.demand("gateway", "parse").base_s > 0


def test_a_named_profile_can_have_some_fields_replaced() -> None:
    scenario = parse_scenario(MINIMAL + "endpoint: {profile: fast, speedup: 10}\n")
    assert scenario.endpoint.name == "fast"
    assert scenario.endpoint.speedup == 10


def test_relative_paths_in_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    trace = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:00:00,10,5\n"
    (tmp_path / "mine.csv").write_text(trace)
    profile = to_yaml(load_scenario("demo"))
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(yaml.safe_load(profile)["endpoint"]))
    (tmp_path / "s.yaml").write_text(
        "workload: {arrivals: {kind: trace, path: mine.csv}}\nhorizon_s: 5\nendpoint: p.yaml\n"
    )
    scenario = load_scenario(tmp_path / "s.yaml")
    assert len(compile_workload(scenario)) == 1
    assert scenario.endpoint == load_scenario("demo").endpoint


def test_where_a_trace_lies_does_not_change_the_hash_but_its_settings_do(tmp_path: Path) -> None:
    def traced(path: str, speed: float = 1) -> str:
        arrivals = {"kind": "trace", "path": path, "speed": speed}
        return scenario_sha256(load_scenario("chat", {"workload.arrivals": arrivals}))

    assert traced("/here/a.csv") == traced("/there/a.csv")
    assert len({traced("a.csv"), traced("b.csv"), traced("a.csv", 2)}) == 3


def test_overrides_reach_every_field_by_its_path_even_unwritten_defaults() -> None:
    scenario = load_scenario(
        "chat",
        {
            "workload.arrivals.rate_per_s": 5,
            "deployment.cache.enabled": False,
            "workload.models.0.name": "claude-opus-5-5",
            "slos.0.limit_s": 9,
            "slos.2": {"name": "errors", "metric": "error_rate", "limit": 0.5},
            "endpoint": "fast",
            "workload.patience_s": {"kind": "exponential", "mean": 4},
            "network.client_gateway_s": 0.02,
        },
    )
    assert scenario.workload.arrivals.rate_per_s == 5  # type: ignore[union-attr]
    assert scenario.deployment.cache.enabled is False
    assert scenario.workload.models[0].name == "claude-opus-5-5"
    assert scenario.slos[0].limit_s == 9
    assert scenario.slos[2].limit == 0.5
    assert scenario.endpoint.name == "fast"
    assert scenario.workload.patience_s is not None
    assert scenario.network.client_gateway_s.mean() == 0.02


def test_an_override_leaves_the_original_alone() -> None:
    scenario = load_scenario("chat")
    before = copy.deepcopy(scenario.model_dump())
    changed = override(scenario, {"seed": 7})
    assert (scenario.model_dump(), changed.seed) == (before, 7)
    assert scenario_sha256(changed) != scenario_sha256(scenario)


def test_an_override_leaves_its_values_alone() -> None:
    instances = {"initial": 3}
    load_scenario("demo", {"deployment.instances": instances, "deployment.instances.initial": 4})
    assert instances == {"initial": 3}


def test_overrides_of_the_command_line_are_yaml_values() -> None:
    assert parse_overrides(["seed=7", "a.b=0.5", "c={kind: constant, value: 1}", "d=x"]) == {
        "seed": 7,
        "a.b": 0.5,
        "c": {"kind": "constant", "value": 1},
        "d": "x",
    }
    with pytest.raises(ScenarioError, match=r"override 'seed 7': expected FIELD.PATH=VALUE"):
        parse_overrides(["seed 7"])
    with pytest.raises(ScenarioError, match="the value is not YAML"):
        parse_overrides(["seed=[7"])


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        (
            "workload.arival.rate_per_s",
            "unknown field 'workload.arival.rate_per_s': did you mean 'workload.arrivals.rate_per_s'?",
        ),
        ("sed", "unknown field 'sed': did you mean 'seed'?"),
        ("slos.9.limit_s", "unknown field 'slos.9.limit_s': did you mean 'slos."),
        ("deployment.cache.enabled.x", "deployment.cache.enabled holds a value"),
        ("", "unknown field ''"),
    ],
)
def test_an_override_of_an_unknown_path_suggests_the_nearest(path: str, complaint: str) -> None:
    with pytest.raises(ScenarioError) as raised:
        load_scenario("chat", {path: 1})
    assert complaint in str(raised.value)
    assert str(raised.value).startswith("chat with overrides: ")


def test_an_override_with_a_bad_value_names_the_field() -> None:
    with pytest.raises(ScenarioError, match=r"^chat with overrides: seed: must be .*found 'x'$"):
        load_scenario("chat", {"seed": "x"})


def test_an_unknown_scenario_suggests_the_nearest_preset() -> None:
    with pytest.raises(ScenarioError, match=r"unknown scenario 'chatt': did you mean 'chat'\?"):
        load_scenario("chatt")
    with pytest.raises(ScenarioError, match="no such file; give the path of a YAML file"):
        load_scenario("nowhere/at/all.yaml")


SESSIONS = """\
workload:
  arrivals: {kind: sessions, starts: {kind: poisson, rate_per_s: 1}, turns: 3, think_s: 1}
"""
ARRIVALS = "workload: {arrivals: %s}\nhorizon_s: 10\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        # Not a scenario at all
        ("", "expected fields (name: value) at the top level, found NoneType"),
        ("- 1\n", "expected fields (name: value) at the top level, found list"),
        ("a: [1\n", "line 2: not YAML"),
        (MINIMAL + "seed: 1\nseed: 2\n", "line 4: not YAML: field 'seed' is given twice"),
        ("? {a: 1}\n: 2\n", "not YAML"),
        # Names
        (MINIMAL + "horizon: 3\n", "scenario: unknown field 'horizon': did you mean 'horizon_s'?"),
        (MINIMAL + "slos: [{nme: x}]\n", "slos.0: unknown field 'nme': did you mean 'name'?"),
        (ARRIVALS % "{kind: poisson, rate: 3}", "workload.arrivals: unknown field 'rate'"),
        (
            ARRIVALS % "{kind: poison, rate_per_s: 3}",
            "workload.arrivals.kind: unknown kind 'poison': did you mean 'poisson'?",
        ),
        (
            ARRIVALS % "{rate_per_s: 3}",
            "workload.arrivals: 'kind' is missing, found {'rate_per_s': 3}; expected one of constant, poisson",
        ),
        (
            MINIMAL + "deployment: {balancer: {policy: least_load}}\n",
            "deployment.balancer.policy: unknown value 'least_load': did you mean 'least_loaded'?",
        ),
        (MINIMAL + "endpoint: sonet\n", "endpoint: profile 'sonet'"),
        (
            MINIMAL + "endpoint: {profile: fast, limit: 3}\n",
            "endpoint: unknown field 'limit': did you mean 'limits'?",
        ),
        (MINIMAL + "stream_detail: chunk\n", "stream_detail: unknown value 'chunk'"),
        # Missing
        ("workload: {arrivals: {kind: poisson, rate_per_s: 3}}\n", "horizon_s: missing"),
        ("horizon_s: 3\n", "workload: missing"),
        (ARRIVALS % "{kind: poisson}", "workload.arrivals.rate_per_s: missing"),
        # Types and bounds
        (
            "workload: 7\nhorizon_s: 1\n",
            "workload: must be a group of fields (name: value), found 7",
        ),
        (ARRIVALS % "{kind: poisson, rate_per_s: fast}", "rate_per_s: must be a valid number"),
        (
            ARRIVALS % "{kind: poisson, rate_per_s: -3}",
            "workload.arrivals.rate_per_s: must be greater than 0, found -3",
        ),
        (ARRIVALS % "{kind: poisson, rate_per_s: .inf}", "rate_per_s: must be less than"),
        (ARRIVALS % "{kind: poisson, rate_per_s: .nan}", "workload.arrivals.rate_per_s: must be"),
        (
            MINIMAL + "deployment: {instances: {initial: 0}}\n",
            "deployment.instances.initial: must be greater than or equal to 1, found 0",
        ),
        (MINIMAL.replace("10", "-10"), "horizon_s: must be greater than 0, found -10"),
        (MINIMAL + "seed: 1.5\n", "seed: must be a valid integer"),
        (MINIMAL + "network: 1\n", "network: must be a group of fields"),
        (MINIMAL + "cpu: {gateway: {parse: {base_s: -1}}}\n", "cpu.gateway.parse.base_s: must be"),
        (ARRIVALS % "{kind: piecewise, segments: []}", "segments: must have at least 1 item"),
        (
            ARRIVALS % "{kind: piecewise, segments: [{duration_s: 0, rate_per_s: 1}]}",
            "workload.arrivals.segments.0.duration_s: must be greater than 0, found 0",
        ),
        # What does not fit together
        (
            MINIMAL + "deployment: {autoscaler: {min_instances: 5, max_instances: 2}}\n",
            "deployment.autoscaler: min_instances (5) is greater than max_instances (2)",
        ),
        (
            MINIMAL + "network: {client_gateway_s: {kind: pareto, minimum: 1, alpha: 0.9}}\n",
            "network.client_gateway_s: pareto with alpha 0.9 has no mean",
        ),
        (
            ARRIVALS % "{kind: closed, users: 3, think_s: 0}",
            "workload.arrivals: think_s is 0, so the number of requests has no bound: set requests_per_user",
        ),
        (
            ARRIVALS % "{kind: trace, path: x, start_s: 5, end_s: 5}",
            "workload.arrivals: end_s (5) is not after start_s (5)",
        ),
        (
            ARRIVALS % "{kind: batch, rate_per_s: 1, batch_size: 0.5}",
            "workload.arrivals: batch_size has mean 0.5; at least 1 is needed",
        ),
        (ARRIVALS % "{kind: renewal, gap_s: 0}", "workload.arrivals: gap_s has mean 0"),
        (
            ARRIVALS
            % "{kind: mmpp, states: [{rate_per_s: 1, mean_s: 1}, {rate_per_s: 2, mean_s: 1}], transitions: [[0.5, 0.5], [1, 0]]}",
            "transitions[0] must add up to 1 with 0 at its own place, found [0.5, 0.5]",
        ),
        (
            SESSIONS + "  prompts: {kind: zipf, prompts: 10}\nhorizon_s: 3\n",
            "workload: prompts: sessions carry their own history",
        ),
        (
            "workload: {arrivals: {kind: poisson, rate_per_s: 1}, models: [{name: a}, {name: a}]}\nhorizon_s: 3\n",
            "workload: models: a name occurs twice in ['a', 'a']",
        ),
        (
            MINIMAL + "faults: [{kind: redis_outage}]\n",
            "faults.0: give exactly one of at_s and rate_per_hour",
        ),
        (
            MINIMAL + "faults: [{kind: redis_outage, at_s: 1, rate_per_hour: 1}]\n",
            "faults.0: give exactly one of at_s and rate_per_hour",
        ),
        (
            MINIMAL + "slos: [{name: a, metric: ttft}]\n",
            "slos.0: a ttft takes quantile and limit_s, and no limit",
        ),
        (
            MINIMAL + "slos: [{name: a, metric: error_rate, limit_s: 1}]\n",
            "slos.0: an error_rate takes limit (0 to 1), and no quantile or limit_s",
        ),
        (
            MINIMAL
            + "slos: [{name: a, metric: error_rate, limit: 0}, {name: a, metric: error_rate, limit: 1}]\n",
            "mine.yaml: slos: a name occurs twice in ['a', 'a']",
        ),
    ],
)
def test_bad_input_gets_one_line_that_names_file_field_finding_and_remedy(
    text: str, complaint: str
) -> None:
    message = failure(text)
    assert message.startswith("mine.yaml: ")
    assert complaint in message
    assert "\n" not in message


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ScenarioError, match="cannot be read"):
        load_scenario(path)


def test_a_trace_replaces_the_arrivals_and_sets_the_horizon_just_after_its_last_request(
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.csv"
    rows = "".join(f"2023-11-16 18:00:{i:02d},10,{i + 1}\n" for i in range(50))
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    whole = with_trace(load_scenario("chat"), path, speed=2)
    assert whole.horizon_s == pytest.approx(24.501)
    assert len(compile_workload(whole)) == 50
    assert len(compile_workload(with_trace(load_scenario("chat"), path, limit=7))) == 7
    with pytest.raises(ScenarioError, match="no such trace file"):
        with_trace(load_scenario("chat"), tmp_path / "nowhere.csv")
    with pytest.raises(ScenarioError, match=r"workload\.arrivals\.speed: must be greater than 0"):
        with_trace(load_scenario("chat"), path, speed=0)
