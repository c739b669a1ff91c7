"""The formulas against one another, against published values, and against plain enumeration."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.theory import formulas as f


def test_erlang_b_and_c_take_their_tabulated_values() -> None:
    # Kleinrock 1, and any table of Erlang's functions.
    assert f.erlang_b(1.0, 1) == pytest.approx(0.5)
    assert f.erlang_b(10.0, 10) == pytest.approx(0.2146, abs=5e-5)
    assert f.erlang_c(8.0, 10) == pytest.approx(0.4092, abs=5e-5)


def test_a_birth_death_chain_contains_the_queues_with_formulas_of_their_own() -> None:
    rate, service, servers = 2.8, 1.0, 4
    chain = f.birth_death(lambda _: rate, lambda n: min(n, servers) / service, 600)
    waiting = chain.mean(lambda n: max(0, n - servers))
    assert waiting / rate == pytest.approx(f.mmc_wait(rate, service, servers))
    loss = f.birth_death(lambda _: rate, lambda n: n / service, servers + 1)
    assert loss.probabilities[-1] == pytest.approx(f.erlang_b(rate * service, servers))


def test_pollaczek_khinchine_contains_m_m_1() -> None:
    assert f.mg1_wait(0.7, f.Moments(1.0, 2.0)) == pytest.approx(f.mmc_wait(0.7, 1.0, 1))


def test_infinite_patience_makes_erlang_a_the_queue_without_it() -> None:
    chain = f.erlang_a(2.8, 1.0, 4, 1e12, states=600)
    assert chain.mean(lambda n: max(0, n - 4)) / 2.8 == pytest.approx(f.mmc_wait(2.8, 1.0, 4))


def test_batching_of_one_at_a_time_is_m_m_1() -> None:
    chain = f.birth_death(lambda _: 0.7, f.batch_service_rates(0.9, 0.1, 1), 400)
    assert chain.mean() / 0.7 == pytest.approx(1 / (1 - 0.7))


def test_the_power_of_two_choices_has_mitzenmachers_value() -> None:
    assert f.power_of_choices_response(0.9, 2) == pytest.approx(2.6141, abs=5e-5)
    assert f.power_of_choices_response(0.9, 1) == pytest.approx(10.0)


def test_convolution_and_mean_value_analysis_agree() -> None:
    exact = f.closed_network([(0.3, 1), (1.0, 1)], 2.0, 8)
    again = f.mean_value_analysis([0.3, 1.0], 2.0, 8)
    assert exact.throughput == pytest.approx(again.throughput)
    assert exact.response == pytest.approx(again.response)


def test_convolution_with_several_servers_solves_the_balance_equations() -> None:
    """The Markov chain of thinkers, desk and a station of two servers, solved as linear equations."""
    users, think, desk, work, servers = 5, 2.0, 0.3, 1.0, 2
    states = [(a, b) for a in range(users + 1) for b in range(users + 1 - a)]
    index = {state: i for i, state in enumerate(states)}
    rates = np.zeros((len(states), len(states)))
    for a, b in states:
        for target, rate in (
            ((a + 1, b), (users - a - b) / think),
            ((a - 1, b + 1), (a > 0) / desk),
            ((a, b - 1), min(b, servers) / work),
        ):
            if rate > 0:
                rates[index[a, b], index[target]] += rate
    np.fill_diagonal(rates, -rates.sum(axis=1))
    balance = np.vstack([rates.T, np.ones(len(states))])
    pi, *_ = np.linalg.lstsq(balance, np.append(np.zeros(len(states)), 1.0))
    throughput = sum(p for p, (a, _) in zip(pi, states, strict=True) if a > 0) / desk
    found = f.closed_network([(desk, 1), (work, servers)], think, users)
    assert found.throughput == pytest.approx(throughput)


def test_the_last_of_two_exponential_times_takes_half_again_as_long() -> None:
    assert f.expected_order_statistic(2.0, 2, 2) == pytest.approx(3.0)
    assert f.expected_order_statistic(2.0, 4, 1) == pytest.approx(0.5)


def test_an_lru_cache_of_one_hits_when_a_request_repeats() -> None:
    popularity = f.zipf(5, 1.0)
    assert f.lru_hit_ratio(popularity, 1) == pytest.approx(math.fsum(p * p for p in popularity))
    assert f.lru_hit_ratio(popularity, 5) == pytest.approx(1.0)


def test_ches_approximation_is_close_already_for_a_small_cache() -> None:
    popularity = f.zipf(8, 0.8)
    assert f.che_hit_ratio(popularity, 4) == pytest.approx(f.lru_hit_ratio(popularity, 4), rel=0.02)


def test_m_d_1_k_loses_as_a_bucket_played_through_does() -> None:
    """Against the bucket itself, 400,000 Poisson arrivals."""
    rate, size, n = 1.2, 5, 400_000
    gaps = np.random.default_rng(7).exponential(1 / rate, n)
    level, lost = float(size), 0
    for gap in gaps.tolist():
        level = min(size, level + gap)
        if level >= 1:
            level -= 1
        else:
            lost += 1
    assert lost / n == pytest.approx(f.md1k_loss(rate, 1.0, size), rel=0.02)
    assert f.md1k_loss(0.7, 1.0, 1) == pytest.approx(0.7 / 1.7)  # insensitive: Erlang's loss
