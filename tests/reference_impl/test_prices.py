"""What answers cost, and the most that they may."""

from __future__ import annotations

import itertools

import pytest

from reference_impl.messages import Usage
from reference_impl.prices import load_prices

PRICES = load_prices()


def test_cache_writes_for_an_hour_cost_their_own_price() -> None:
    million = 1_000_000
    usd = PRICES.price_usd("claude-haiku-4-5", Usage(cache_creation_input_tokens=million))
    assert usd == pytest.approx(1.25)
    kept = Usage(cache_creation_input_tokens=million, cache_creation_1h_input_tokens=million)
    assert PRICES.price_usd("claude-haiku-4-5", kept) == pytest.approx(2.0)
    half = Usage(cache_creation_input_tokens=million, cache_creation_1h_input_tokens=million // 2)
    assert PRICES.price_usd("claude-haiku-4-5", half, batch=True) == pytest.approx(1.625 / 2)


@pytest.mark.parametrize("model", sorted(PRICES.models))
def test_no_answer_costs_more_than_the_most(model: str) -> None:
    for prompt, batch in itertools.product((1_000, 150_000), (False, True)):
        most = PRICES.most_usd(model, input_tokens=prompt, output_tokens=70, batch=batch)
        costs = [
            PRICES.price_usd(model, usage, batch=batch)
            for usage in (
                Usage(prompt, 70),
                Usage(0, 70, prompt),
                Usage(0, 70, 0, prompt),
                Usage(0, 70, prompt, 0, prompt),
            )
        ]
        assert most == pytest.approx(max(costs))
        assert all(cost <= most * (1 + 1e-12) for cost in costs)


def test_a_model_that_is_not_listed_costs_nothing() -> None:
    assert PRICES.most_usd("another", input_tokens=10**6, output_tokens=10**6) == 0.0
