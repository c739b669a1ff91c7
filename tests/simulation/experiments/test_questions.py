"""What the experiments answer, on systems whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from simulation.experiments.capacity import INSTANCES, capacity
from simulation.experiments.compare import compare
from simulation.experiments.errors import ExperimentError
from simulation.experiments.frames import summarise
from simulation.experiments.points import grid, parse_vary
from simulation.experiments.replications import default_warm_up, replicate
from simulation.experiments.runner import JobRunner
from simulation.experiments.sensitivity import sensitivity
from simulation.experiments.sweep import sweep
from simulation.scenario.errors import ScenarioError, TraceError
from simulation.scenario.spec import load_scenario
from tests.simulation.experiments.tools import small

RATE = "workload.arrivals.rate_per_s"
CONCURRENCY = "deployment.instances.concurrency"


@pytest.fixture
def runner() -> JobRunner:
    return JobRunner()


def promise(limit_s: float, quantile: float = 0.9) -> list[dict[str, object]]:
    return [{"name": "answer", "metric": "latency", "quantile": quantile, "limit_s": limit_s}]


# Sweep.


def test_a_grid_has_every_combination_the_last_field_fastest() -> None:
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"},
    ]  # fmt: skip


def test_values_are_separated_by_commas_or_a_list() -> None:
    assert parse_vary(["a=1,2.5,x", "b=[1, [2, 3]]", "c=4"]) == {
        "a": [1, 2.5, "x"], "b": [1, [2, 3]], "c": [4],
    }  # fmt: skip


def test_a_sweep_has_a_row_for_each_point_and_seed(runner: JobRunner) -> None:
    frame = sweep(small(), grid({RATE: [0.2, 0.8], CONCURRENCY: [1, 2]}), runner, replications=3)
    assert frame[[RATE, CONCURRENCY, "seed"]].to_numpy().tolist() == [
        [rate, slots, seed] for rate in (0.2, 0.8) for slots in (1, 2) for seed in (1, 2, 3)
    ]
    table = summarise(frame, [RATE, CONCURRENCY], ["latency_mean_s"])
    crowded, roomy = table["latency_mean_s"][2], table["latency_mean_s"][3]
    assert crowded > roomy
    assert (table["latency_mean_s low"] < table["latency_mean_s"]).all()


def test_any_field_can_be_swept_also_a_whole_group(runner: JobRunner) -> None:
    services = [{"kind": "exponential", "mean": 1}, {"kind": "constant", "value": 1}]
    frame = sweep(small(), grid({"endpoint.service.service_s": services}), runner)
    assert frame["endpoint.service.service_s"][0] == "{'kind': 'exponential', 'mean': 1}"
    assert frame["latency_mean_s"].nunique() == 2


def test_an_unknown_field_is_refused_before_anything_runs_and_names_the_nearest(
    runner: JobRunner,
) -> None:
    points = [{RATE: 0.5}, {"workload.arrivals.rate_per_sec": 0.5}]
    with pytest.raises(ScenarioError, match=f"did you mean '{RATE}'"):
        sweep(small(), points, runner)


def test_a_trace_that_is_not_sorted_is_refused_with_its_line(
    runner: JobRunner, tmp_path: pytest.TempPathFactory
) -> None:
    path = f"{tmp_path}/trace.csv"
    with open(path, "w") as file:  # noqa: PTH123 - a str path is what a scenario holds
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n5,10,10\n3,10,10\n")
    with pytest.raises(TraceError, match="line 3"):
        sweep(small(workload__arrivals={"kind": "trace", "path": path}), [{}], runner)


def test_a_distribution_without_a_mean_is_refused(runner: JobRunner) -> None:
    pareto = {"kind": "pareto", "minimum": 1, "alpha": 0.9}
    with pytest.raises(ScenarioError, match=r"endpoint.service.service_s"):
        sweep(small(), [{"endpoint.service.service_s": pareto}], runner)


# Replications.


def test_replications_stop_when_the_mean_is_known_as_well_as_asked(runner: JobRunner) -> None:
    scenario = small(horizon_s=2000, workload__arrivals__rate_per_s=0.5)
    found = replicate(scenario, runner, metrics=["latency_mean_s"], precision=0.1)
    precision = found.precisions["latency_mean_s"]
    assert found.reached
    assert 10 <= len(found.runs) < 200
    assert precision.relative_half_width <= 0.1 / 1.1
    assert precision.interval.contains(2.0)  # 1 / (1 - 0.5)
    assert found.warm_up == "mser5"


def test_replications_that_cannot_reach_the_precision_stop_at_the_maximum(
    runner: JobRunner,
) -> None:
    found = replicate(small(), runner, precision=0.001, maximum=12)
    assert not found.reached
    assert len(found.runs) == 12
    assert found.precisions["latency_mean_s"].replications_needed > 1000


def test_a_load_that_follows_a_plan_has_no_warm_up_to_leave_out() -> None:
    assert default_warm_up(load_scenario("demo")) == 0.0
    assert default_warm_up(load_scenario("chat")) == "mser5"


# Compare.


def test_a_faster_variant_is_ranked_and_twins_are_not(runner: JobRunner) -> None:
    found = compare(
        small(horizon_s=500),
        {"one": {}, "two": {CONCURRENCY: 2}, "same": {"description": "the same"}},
        runner,
    )
    assert found.ranking is None
    assert next(iter(found.means)) == "two"
    assert found.pairs["one", "two"].settled
    assert found.pairs["one", "two"].interval.high < 0
    assert not found.pairs["one", "same"].settled
    assert found.verdict[0].startswith("two is better than")
    assert found.verdict[1].endswith("have the same latency_mean_s in every run")


def test_what_overlaps_is_not_ranked_and_the_replications_that_would_settle_it_are_named(
    runner: JobRunner,
) -> None:
    service = {"endpoint.service.service_s": {"kind": "gamma", "mean": 1, "cv": 0.98}}
    found = compare(small(), {"exponential": {}, "gamma": service}, runner, replications=4)
    pair = found.pairs["exponential", "gamma"]
    assert found.ranking is None
    assert pair.replications_needed > 4
    assert f"about {pair.replications_needed:,} replications would settle" in found.verdict[0]


def test_more_is_better_where_it_is(runner: JobRunner) -> None:
    slow = {"endpoint.service.service_s": 3}
    found = compare(small(), {"slow": slow, "as is": {}}, runner, metric="throughput_per_s")
    assert found.ranking == ["as is", "slow"]


def test_variants_meet_the_same_requests(runner: JobRunner) -> None:
    found = compare(small(), {"one": {}, "two": {CONCURRENCY: 2}}, runner)
    counts = found.runs.pivot(index="seed", columns="variant", values="requests")
    assert (counts["one"] == counts["two"]).all()


# Capacity.


def test_the_largest_load_of_m_m_1_is_where_theory_has_it(runner: JobRunner) -> None:
    """P(response <= t) = 1 - exp(-(mu - lambda) t): p90 is 6 s at lambda = 1 - ln(10)/6."""
    scenario = small(horizon_s=2000, slos=promise(6.0))
    found = capacity(scenario, runner, precision=0.1, warm_up=100.0)
    exact = 1 - math.log(10) / 6
    assert exact * 0.85 < found.value <= exact * 1.02
    assert found.beyond is not None
    assert found.value < found.beyond <= found.value * 1.1
    assert {t.verdict for t in found.trials if t.value == found.value} == {"meets"}


def test_the_fewest_slots_are_found_one_less_is_shown_not_to_do_and_the_hopeless_are_not_simulated(
    runner: JobRunner,
) -> None:
    scenario = small(horizon_s=150, workload__arrivals__rate_per_s=9, slos=promise(5.0))
    found = capacity(scenario, runner, path=CONCURRENCY, goal="fewest")
    assert found.value == 10
    assert found.beyond == 9
    verdicts = {trial.value: trial for trial in found.trials}
    assert verdicts[10].verdict == "meets"
    assert (verdicts[9].verdict, verdicts[9].replications) == ("fails", 5)
    assert (verdicts[8].verdict, verdicts[8].replications) == ("pruned", 0)
    assert "serve at most 8" in verdicts[8].reason
    assert f"{CONCURRENCY} = 10 is the smallest" in found.verdict


def test_a_promise_that_no_configuration_keeps_is_said_and_not_searched_for_ever(
    runner: JobRunner,
) -> None:
    scenario = small(slos=promise(0.5), deployment__instances__concurrency=4)
    with pytest.raises(
        ExperimentError,
        match=r"no value keeps every promise; at .* answer: 2\.\d+ s, promised 0\.5 s",
    ):
        capacity(scenario, runner, path=INSTANCES, goal="fewest")


def test_values_that_are_no_scenario_are_passed_over(runner: JobRunner) -> None:
    """The autoscaler's maximum is never below its minimum."""
    scenario = small(
        deployment__autoscaler={"enabled": True, "min_instances": 3, "max_instances": 8},
        deployment__instances__initial=3,
        slos=promise(6.0),
    )
    found = capacity(scenario, runner, path="deployment.autoscaler.max_instances", goal="fewest")
    assert (found.value, found.beyond) == (3, 2)
    assert "min_instances (3) is greater than max_instances (2)" in found.verdict


def test_a_promise_that_no_load_keeps_is_told_with_the_nearest_miss(runner: JobRunner) -> None:
    with pytest.raises(
        ExperimentError, match=r"no value keeps every promise; at .* answer: [12]\.\d+ s"
    ):
        capacity(small(slos=promise(0.5), horizon_s=200), runner)


@pytest.mark.parametrize(
    ("overrides", "arguments", "message"),
    [
        ({}, {}, "has no slos"),
        ({"slos": promise(1)}, {"path": "workload.arrivals.rate"}, "did you mean"),
        ({"slos": promise(1)}, {"path": "name"}, "is no number that could be searched"),
        ({"slos": promise(1)}, {"between": (2.0, 1.0)}, "two rising numbers"),
        (
            {"slos": promise(1), "deployment__autoscaler__enabled": True},
            {"path": INSTANCES, "goal": "fewest"},
            "the autoscaler changes the fleet",
        ),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(
    runner: JobRunner, overrides: dict[str, object], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ScenarioError, match=message):
        capacity(small(**overrides), runner, **arguments)  # type: ignore[arg-type]


# Sensitivity.


def test_morris_finds_the_factor_that_matters_and_the_one_that_does_not(
    runner: JobRunner,
) -> None:
    factors = {
        "deployment.instances.drain_s": (10.0, 60.0),
        "endpoint.service.service_s.mean": (0.5, 1.0),
        CONCURRENCY: (1.0, 2.0),
    }
    found = sensitivity(small(), factors, runner, samples=6, replications=2)
    effects = found.effects.set_index("factor")
    assert effects.index[-1] == "deployment.instances.drain_s"
    assert effects.loc["deployment.instances.drain_s", "mu_star"] == 0
    assert (effects["mu_star"][:2] > 0.1).all()
    signed = effects["mu"].to_dict()
    assert signed["endpoint.service.service_s.mean"] > 0 > signed[CONCURRENCY]
    assert set(found.runs[CONCURRENCY]) == {1, 2}
    assert found.noise > 0


def test_sobol_shares_out_the_variance(runner: JobRunner) -> None:
    factors = {
        "endpoint.service.service_s.value": (0.1, 2.0),
        "network.client_gateway_s.value": (0.0, 0.02),
    }
    scenario = small(endpoint__service__service_s=1, workload__arrivals__rate_per_s=0.05)
    effects = sensitivity(scenario, factors, runner, method="sobol", samples=64).effects
    assert effects["factor"][0] == "endpoint.service.service_s.value"
    assert effects["ST"][0] == pytest.approx(1.0, abs=0.1)
    assert effects["ST"][1] == pytest.approx(0.0, abs=0.02)


def test_the_same_question_has_the_same_answer(runner: JobRunner) -> None:
    factors = {RATE: (0.1, 0.8), CONCURRENCY: (1.0, 3.0)}
    first = sensitivity(small(), factors, runner, samples=4)
    again = sensitivity(small(), factors, JobRunner(), samples=4)
    pd.testing.assert_frame_equal(first.effects, again.effects, check_exact=True)
    assert np.isnan(first.noise)


@pytest.mark.parametrize(
    ("factors", "arguments", "message"),
    [
        ({}, {}, "at least one factor"),
        ({RATE: (1.0, 1.0)}, {}, "the range must rise"),
        ({RATE: (0.1, 0.5)}, {"method": "sobol", "samples": 12}, "power of 2"),
        ({"name": (0.0, 1.0)}, {}, "name: must be"),
        ({"workload.arrivals.rte_per_s": (0.1, 0.5)}, {}, "did you mean"),
        (
            {"deployment.instances.drain_s": (1.0, 2.0)},
            {"samples": 2},
            "none of the factors matters",
        ),
    ],
)
def test_factors_that_say_nothing_are_refused(
    runner: JobRunner,
    factors: dict[str, tuple[float, float]],
    arguments: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(ScenarioError, match=message):
        sensitivity(small(), factors, runner, **arguments)  # type: ignore[arg-type]
