"""Bounds and guesses, against formulas and against the simulation that they prune for."""

from __future__ import annotations

import math

import pytest

from simulation.experiments.closed_form import ClosedForm
from simulation.experiments.job import make_job, run_job
from simulation.experiments.measuring import number_of
from simulation.scenario.spec import load_scenario
from tests.simulation.experiments.tools import small

ANSWER = [{"name": "answer", "metric": "latency", "quantile": 0.9, "limit_s": 6}]


def test_slots_saturate_at_servers_over_service_time() -> None:
    rate, what = ClosedForm(small(deployment__instances__concurrency=4)).saturation
    assert rate == pytest.approx(4.0, rel=1e-3)
    assert what == "the instances' slots"


def test_a_rate_limit_saturates_where_it_says() -> None:
    limits = {"requests_per_min": 30}
    rate, what = ClosedForm(small(endpoint__limits=limits)).saturation
    assert rate == pytest.approx(0.5)
    assert what == "the endpoint's requests per minute"


def test_a_cache_can_at_most_answer_what_is_asked_again() -> None:
    scenario = load_scenario("chat", {"deployment.cache.enabled": False})
    without, _ = ClosedForm(scenario).saturation
    with_cache, _ = ClosedForm(load_scenario("chat")).saturation
    assert with_cache == pytest.approx(without / 0.7)


def test_an_engine_saturates_with_full_batches() -> None:
    """n/(a + b n) at the largest n: 16 / (0.6 + 1.6)."""
    service = {
        "kind": "self_hosted", "decode_base_s": 3e-4, "decode_per_sequence_s": 5e-5,
        "prefill_tokens_per_s": 1e9, "max_num_seqs": 16, "kv_cache_tokens": 10**10,
    }  # fmt: skip
    scenario = small(
        endpoint__service=service,
        deployment__instances__concurrency=1000,
        workload__output_tokens=2000,
    )
    rate, what = ClosedForm(scenario).saturation
    assert rate == pytest.approx(16 / 2.2)
    assert what == "the engine's batches"


def test_the_guess_for_m_m_1_is_its_exact_value() -> None:
    guess = ClosedForm(small(slos=ANSWER)).guess_rate()
    assert guess == pytest.approx(1 - math.log(10) / 6, rel=0.01)


@pytest.mark.parametrize("queue_limit", [1_000_000, 3])
def test_what_is_called_hopeless_is(queue_limit: int) -> None:
    slos = [*ANSWER, {"name": "errors", "metric": "error_rate", "limit": 0.01}]
    scenario = small(
        slos=slos,
        workload__arrivals__rate_per_s=1.5,
        deployment__instances__queue_limit=queue_limit,
        horizon_s=500,
    )
    assert ClosedForm(scenario).hopeless == (
        "the instances' slots serve at most 1 requests/s, asked are 1.5"
    )
    row = run_job(make_job(scenario))
    assert row["slos_met"] is False
    assert max(number_of(row, "slo:answer") / 6, number_of(row, "slo:errors") / 0.01) > 2


def test_a_short_queue_that_loses_what_it_cannot_serve_is_not_hopeless_if_losses_are_allowed() -> (
    None
):
    scenario = small(
        slos=ANSWER,
        workload__arrivals__rate_per_s=1.5,
        deployment__instances__queue_limit=1,
    )
    assert ClosedForm(scenario).hopeless is None
    assert run_job(make_job(scenario))["slos_met"] is True


def test_nothing_is_called_hopeless_below_saturation_or_under_a_load_that_changes() -> None:
    assert ClosedForm(small(slos=ANSWER, workload__arrivals__rate_per_s=0.99)).hopeless is None
    assert ClosedForm(load_scenario("demo")).hopeless is None
