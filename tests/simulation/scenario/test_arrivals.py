"""The arrival processes."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter

from simulation.scenario.arrival_spec import OpenArrivals
from simulation.scenario.arrivals import instants
from simulation.scenario.distributions import Floats
from simulation.scenario.errors import WorkloadError

adapter: TypeAdapter[OpenArrivals] = TypeAdapter(OpenArrivals)

PROCESSES: dict[str, dict[str, object]] = {
    "constant": {"kind": "constant", "rate_per_s": 10},
    "poisson": {"kind": "poisson", "rate_per_s": 10},
    "gamma": {"kind": "gamma", "rate_per_s": 10, "cv": 2},
    "renewal": {"kind": "renewal", "gap_s": {"kind": "uniform", "low": 0.05, "high": 0.15}},
    "batch": {"kind": "batch", "rate_per_s": 10, "batch_size": {"kind": "uniform", "low": 1, "high": 9}},
    "piecewise": {
        "kind": "piecewise",
        "segments": [
            {"duration_s": 5, "rate_per_s": 5},
            {"duration_s": 5, "rate_per_s": 5, "to_rate_per_s": 25},
        ],
        "repeat": True,
    },
    "diurnal": {"kind": "diurnal", "rate_per_s": 10, "amplitude": 1, "period_s": 100, "peak_at_s": 25},
    "mmpp": {
        "kind": "mmpp",
        "states": [{"rate_per_s": 2, "mean_s": 3}, {"rate_per_s": 34, "mean_s": 1}],
    },
}  # fmt: skip


def draw(document: object, horizon_s: float, seed: int = 1) -> Floats:
    return instants(adapter.validate_python(document), seed, horizon_s)


@pytest.mark.parametrize("name", PROCESSES)
def test_instants_ascend_from_zero_to_before_the_horizon(name: str) -> None:
    times = draw(PROCESSES[name], 50)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 50


@pytest.mark.parametrize("name", PROCESSES)
def test_the_same_seed_gives_the_same_instants_and_a_longer_horizon_only_adds_some(
    name: str,
) -> None:
    short, long = draw(PROCESSES[name], 50), draw(PROCESSES[name], 500)
    assert np.array_equal(short, draw(PROCESSES[name], 50))
    assert long[: len(short)] == pytest.approx(short, abs=1e-9)
    assert long[len(short)] >= 50


@pytest.mark.parametrize("name", PROCESSES)
def test_the_mean_rate_is_the_stated_one(name: str) -> None:
    counts = [len(draw(PROCESSES[name], 1000, seed)) for seed in range(30)]
    error = np.std(counts, ddof=1) / math.sqrt(len(counts))
    assert abs(np.mean(counts) - 10_000) <= 4 * error + 1


@pytest.mark.parametrize(
    ("name", "index"), [("poisson", 1.0), ("gamma", 4.0), ("constant", 0.0), ("batch", 5.87)]
)
def test_the_variance_of_counts_over_long_windows_tells_how_bursty_a_process_is(
    name: str, index: float
) -> None:
    # Index of dispersion: cv^2 of a renewal process; E[size^2]/E[size] of Poisson batches (sizes round(U(1, 9))).
    counts, _ = np.histogram(draw(PROCESSES[name], 200_000), bins=4000, range=(0, 200_000))
    assert counts.var() / counts.mean() == pytest.approx(index, rel=0.12, abs=0.01)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(draw(PROCESSES["poisson"], 10_000))
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.02)
    assert (gaps > gaps.mean()).mean() == pytest.approx(math.exp(-1), rel=0.02)


def test_doubling_the_rate_halves_every_instant() -> None:
    slow = draw({"kind": "poisson", "rate_per_s": 10}, 100)
    fast = draw({"kind": "poisson", "rate_per_s": 20}, 100)
    assert fast[: len(slow)] * 2 == pytest.approx(slow)


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert draw({"kind": "constant", "rate_per_s": 4}, 1).tolist() == [0.25, 0.5, 0.75]


def test_regular_steps_and_ramps_have_one_arrival_a_unit_of_cumulative_rate() -> None:
    times = draw(
        {
            "kind": "piecewise",
            "regular": True,
            "segments": [
                {"duration_s": 2, "rate_per_s": 1},
                {"duration_s": 1, "rate_per_s": 0},
                {"duration_s": 2, "rate_per_s": 0, "to_rate_per_s": 4},
            ],
        },
        6,
    )
    # Cumulative rate: t to 2, then 2, then 2 + (t - 3)^2; then 4 a second.
    expected = [1, 2, 4, 3 + math.sqrt(2), 3 + math.sqrt(3), 5, 5.25, 5.5, 5.75]
    assert times == pytest.approx(expected)


def test_a_step_down_to_zero_holds_or_starts_again_as_told() -> None:
    pulse = {
        "kind": "piecewise",
        "segments": [{"duration_s": 10, "rate_per_s": 20}, {"duration_s": 10, "rate_per_s": 0}],
    }
    assert draw(pulse, 100).max() < 10
    repeated = draw({**pulse, "repeat": True}, 100)
    assert ((repeated % 20) < 10).all()
    assert len(np.unique(repeated // 20)) == 5


def test_a_rate_of_zero_throughout_gives_no_arrival() -> None:
    silent = {"kind": "piecewise", "segments": [{"duration_s": 10, "rate_per_s": 0}]}
    assert len(draw(silent, 100)) == 0


def test_the_diurnal_rate_follows_its_wave() -> None:
    wave = {**PROCESSES["diurnal"], "rate_per_s": 100}
    times = draw(wave, 10_000) % 100
    counts, _ = np.histogram(times, bins=20, range=(0, 100))
    middles = np.arange(20) * 5 + 2.5
    expected = 100 * 500 * (1 + np.cos(2 * np.pi * (middles - 25) / 100))
    assert (np.abs(counts - expected) <= 5 * np.sqrt(expected) + 0.02 * expected.max()).all()


def test_the_chain_of_rates_follows_its_transition_probabilities() -> None:
    document = {
        "kind": "mmpp",
        "states": [{"rate_per_s": r, "mean_s": 1} for r in (0, 100, 10)],
        "transitions": [[0, 0, 1], [1, 0, 0], [1, 0, 0]],  # the second state is never entered
    }
    counts, _ = np.histogram(draw(document, 5000), bins=25_000)
    assert counts.max() < 15  # 10/s for 0.2 s; 100/s would bring 20
    assert len(draw(document, 5000)) == pytest.approx(25_000, rel=0.1)


def test_too_many_requests_are_refused_before_memory_is_gone() -> None:
    with pytest.raises(WorkloadError, match="lower the rate or the horizon"):
        draw({"kind": "poisson", "rate_per_s": 1e6}, 1e6)
