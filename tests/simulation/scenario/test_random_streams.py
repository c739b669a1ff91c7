"""Randomness by key."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulation.scenario.random_streams import UNIFORMS_PER_KEY, generator, uniforms

ids = st.integers(min_value=0, max_value=2**62)


@given(seed=ids, request_id=ids, attempt=st.integers(0, 100))
def test_a_key_always_gives_the_same_eight_numbers_strictly_between_zero_and_one(
    seed: int, request_id: int, attempt: int
) -> None:
    drawn = uniforms(seed, "first token", request_id, attempt)
    assert drawn == uniforms(seed, "first token", request_id, attempt)
    assert len(drawn) == UNIFORMS_PER_KEY
    assert all(0 < u < 1 for u in drawn)


def test_every_part_of_the_key_matters() -> None:
    keys = [(1, "a", 2, 0), (2, "a", 2, 0), (1, "b", 2, 0), (1, "a", 3, 0), (1, "a", 2, 1)]
    assert len({uniforms(*key)[0] for key in keys}) == len(keys)


def test_numbers_over_many_requests_are_uniform_and_uncorrelated() -> None:
    table = np.array([uniforms(7, "ttft", request) for request in range(20_000)])
    counts = np.array([np.histogram(column, bins=20, range=(0, 1))[0] for column in table.T])
    chi_square = ((counts - 1000) ** 2 / 1000).sum(axis=1)
    assert chi_square.max() < 50  # 19 degrees of freedom: beyond 50 once in 10,000 columns
    correlations = np.corrcoef(table.T) - np.eye(UNIFORMS_PER_KEY)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(20_000)


def test_a_generator_starts_afresh_for_its_seed_and_purpose() -> None:
    first = generator(1, "arrivals").random(5)
    assert np.array_equal(first, generator(1, "arrivals").random(5))
    assert not np.array_equal(first, generator(1, "think").random(5))
    assert not np.array_equal(first, generator(2, "arrivals").random(5))


def test_the_numbers_are_pinned_so_that_old_runs_can_be_repeated() -> None:
    assert uniforms(1, "ttft", 42)[:2] == (0.05144687815051585, 0.5430892701154125)
    assert generator(1, "arrivals").random(2).tolist() == [0.5893486986014329, 0.3238221303360629]
