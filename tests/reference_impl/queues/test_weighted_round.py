"""The turns of the classes: shares, no starvation, and how long an urgent task waits."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.queues.weighted_round import WeightedRound


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10))
def test_every_class_gets_its_weight_in_every_round(levels: int) -> None:
    turns = WeightedRound(levels)
    full = [True] * levels
    for _ in range(3):
        served = [turns.choose(full) for _ in range(turns.length)]
        assert [served.count(level) for level in range(levels)] == list(range(1, levels + 1))


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 10), st.lists(st.integers(1, 1023), max_size=120))
def test_the_most_urgent_waits_at_most_one_round_whatever_was_before(
    levels: int, history: list[int]
) -> None:
    turns = WeightedRound(levels)
    for mask in history:
        turns.choose([mask >> level & 1 for level in range(levels)])
    for _ in range(turns.length):
        if turns.choose([True] * levels) == levels - 1:
            return
    raise AssertionError("it was passed over for a whole round")


def test_nothing_waiting_is_nobodys_turn() -> None:
    assert WeightedRound(3).choose([(), (), ()]) is None
