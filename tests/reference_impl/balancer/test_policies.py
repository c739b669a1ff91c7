"""The routing policies: each is what its name says, checked against a naive model of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.balancer.least_loaded import LeastLoaded
from reference_impl.balancer.port import Member, RoutingPolicy
from reference_impl.balancer.power_of_two import PowerOfChoices, counter_draw
from reference_impl.balancer.round_robin import RoundRobin
from reference_impl.balancer.weighted import SmoothWeighted


def members(*weights: float) -> list[Member]:
    return [Member(chr(ord("a") + i), i, weight, 0) for i, weight in enumerate(weights)]


def picks(policy: RoutingPolicy, count: int) -> str:
    selected = [policy.select() for _ in range(count)]
    return "".join(member.instance_id if member else "-" for member in selected)


def filled(policy: RoutingPolicy, those: list[Member]) -> RoutingPolicy:
    for member in those:
        policy.add(member)
    return policy


POLICIES: list[Callable[[], RoutingPolicy]] = [
    RoundRobin,
    LeastLoaded,
    SmoothWeighted,
    lambda: PowerOfChoices(counter_draw(1)),
]


@pytest.mark.parametrize("make", POLICIES)
def test_an_empty_pool_selects_none_also_after_the_last_has_left(
    make: Callable[[], RoutingPolicy],
) -> None:
    policy = make()
    assert policy.select() is None
    (only,) = members(1.0)
    policy.add(only)
    assert policy.select() is only
    policy.remove(only)
    assert policy.select() is None


# Round robin


def test_round_robin_rotates() -> None:
    assert picks(filled(RoundRobin(), members(1, 1, 1)), 7) == "abcabca"


def test_round_robin_keeps_its_turn_when_members_leave() -> None:
    a, b, c, d = members(1, 1, 1, 1)
    policy = filled(RoundRobin(), [a, b, c, d])
    assert picks(policy, 2) == "ab"
    policy.remove(a)  # had its turn
    assert picks(policy, 1) == "c"
    policy.remove(d)  # was next
    assert picks(policy, 4) == "bcbc"


def test_a_newcomer_to_round_robin_has_its_turn_at_the_end_of_the_round() -> None:
    a, b, c, d = members(1, 1, 1, 1)
    policy = filled(RoundRobin(), [a, b, c])
    assert picks(policy, 1) == "a"
    policy.add(d)
    assert picks(policy, 8) == "bcadbcad"


# Weighted


def test_weights_five_one_one_are_spread_as_nginx_does() -> None:
    assert picks(filled(SmoothWeighted(), members(5, 1, 1)), 14) == "aabacaaaabacaa"


def naive_smooth(weights: list[float], count: int) -> str:
    """nginx's algorithm, word for word: a scan of all at every selection."""
    credit, chosen = [0.0] * len(weights), ""
    for _ in range(count):
        credit = [c + w for c, w in zip(credit, weights, strict=True)]
        best = credit.index(max(credit))
        credit[best] -= sum(weights)
        chosen += chr(ord("a") + best)
    return chosen


@given(st.lists(st.integers(1, 6).map(float), min_size=1, max_size=12))
def test_smooth_weighting_gives_the_sequence_of_the_plain_scan(weights: list[float]) -> None:
    assert picks(filled(SmoothWeighted(), members(*weights)), 60) == naive_smooth(weights, 60)


def test_equal_weights_are_a_plain_rotation() -> None:
    assert picks(filled(SmoothWeighted(), members(2, 2, 2)), 6) == "abcabc"


@given(
    st.lists(st.integers(1, 9).map(float), min_size=2, max_size=8),
    st.integers(0, 50),
    st.integers(1, 9),
)
def test_a_newcomer_gets_neither_a_burst_nor_a_drought(
    weights: list[float], before: int, weight: int
) -> None:
    *old, newcomer = members(*weights, float(weight))
    policy = filled(SmoothWeighted(), old)
    picks(policy, before)
    policy.remove(old.pop(0))
    policy.add(newcomer)
    total = sum(m.weight for m in old) + weight
    rounds = 20
    count = picks(policy, int(rounds * total)).count(newcomer.instance_id)
    assert abs(count - rounds * weight) <= len(weights)


def test_a_changed_weight_changes_the_shares() -> None:
    a, b = members(1, 1)
    policy = filled(SmoothWeighted(), [a, b])
    assert Counter(picks(policy, 10)) == {"a": 5, "b": 5}
    b.weight = 4.0
    policy.changed(b)
    assert Counter(picks(policy, 100)) == {"a": 20, "b": 80}


# Least loaded


def test_equally_loaded_members_take_turns() -> None:
    assert picks(filled(LeastLoaded(), members(1, 1, 1)), 6) == "abcabc"


def test_load_counts_relative_to_weight_and_capacity() -> None:
    small, large = Member("small", 0, 1.0, 4), Member("large", 1, 1.0, 16)
    policy = filled(LeastLoaded(), [small, large])
    for _ in range(20):
        member = policy.select()
        assert member is not None
        member.in_flight += 1
        policy.changed(member)
    assert (small.in_flight, large.in_flight) == (4, 16)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from("call end leave join"), st.integers(0, 7)), max_size=120),
)
def test_the_heap_always_finds_what_a_scan_finds(
    weights: list[float], actions: list[tuple[str, int]]
) -> None:
    everyone = members(*weights)
    policy, inside = filled(LeastLoaded(), everyone), dict.fromkeys(everyone)
    for _ in range(3):
        for action, index in actions:
            member = everyone[index % len(everyone)]
            if action == "c" and inside:
                chosen = policy.select()
                assert chosen is not None
                assert chosen.load == min(m.load for m in inside)
                chosen.in_flight += 1
                policy.changed(chosen)
            elif action == "e" and member in inside and member.in_flight:
                member.in_flight -= 1
                policy.changed(member)
            elif action == "l" and member in inside:
                del inside[member]
                policy.remove(member)
            elif action == "j" and member not in inside:
                inside[member] = None
                policy.add(member)
        chosen = policy.select()
        assert (chosen is None) == (not inside)


def test_the_heap_does_not_grow_with_the_number_of_calls() -> None:
    those = members(1, 1, 1)
    policy = LeastLoaded()
    filled(policy, those)
    busy = those[0]
    for _ in range(10_000):
        busy.in_flight += 1
        policy.changed(busy)
    assert len(policy._heap) <= 4 * 3 + 16


# Power of two choices


def test_the_less_loaded_of_the_two_drawn_is_chosen() -> None:
    a, b, c = members(1, 1, 1)
    draws = {0: (0.0, 0.0), 1: (0.5, 0.9), 2: (0.99, 0.0), 3: (0.4, 0.4)}
    policy = filled(PowerOfChoices(draws.__getitem__), [a, b, c])
    a.in_flight, b.in_flight, c.in_flight = 2, 1, 1
    # (a, b): b is less loaded. (b, c): a tie, the first drawn. (c, a): c. (b, a): b.
    assert picks(policy, 4) == "bbcb"


def test_the_two_drawn_are_always_distinct() -> None:
    a, b = members(1, 1)
    policy = filled(PowerOfChoices(counter_draw(3)), [a, b])
    a.in_flight = 1
    assert picks(policy, 200) == "b" * 200


def test_draws_depend_on_the_seed_and_the_number_of_the_decision_alone() -> None:
    assert counter_draw(5)(17) == counter_draw(5)(17)
    assert counter_draw(5)(17) != counter_draw(6)(17)
    uniforms = [u for n in range(2000) for u in counter_draw(5)(n)]
    assert all(0.0 <= u < 1.0 for u in uniforms)
    assert abs(sum(uniforms) / len(uniforms) - 0.5) < 0.02


def test_power_of_two_is_far_more_even_than_one_choice() -> None:
    those = members(*[1.0] * 100)
    policy = filled(PowerOfChoices(counter_draw(7)), those)
    one_choice = Counter(int(counter_draw(8)(n)[0] * 100) for n in range(10_000))
    for _ in range(10_000):
        member = policy.select()
        assert member is not None
        member.in_flight += 1
    assert max(m.in_flight for m in those) <= 104
    assert max(one_choice.values()) >= 120


def test_members_that_leave_are_not_drawn() -> None:
    those = members(1, 1, 1, 1)
    policy = filled(PowerOfChoices(counter_draw(9)), those)
    policy.remove(those[1])
    policy.remove(those[3])
    assert set(picks(policy, 200)) == {"a", "c"}


def test_of_more_choices_the_least_loaded_is_taken_and_of_equals_the_first_drawn() -> None:
    a, b, c, d = members(1, 1, 1, 1)
    a.in_flight, b.in_flight, c.in_flight, d.in_flight = 3, 2, 1, 0
    draws = {0: (0.0, 0.0, 0.0), 1: (0.99, 0.99, 0.99), 2: (0.3, 0.4, 0.0)}
    policy = filled(PowerOfChoices(draws.__getitem__), [a, b, c, d])
    # (a, b, c); (d, c, b); (b, c, a).
    assert picks(policy, 3) == "cdc"


@pytest.mark.parametrize("choices", [1, 3, 8])
def test_every_member_is_drawn_equally_often_whatever_the_number_of_choices(choices: int) -> None:
    those = members(*[1.0] * 10)
    policy = filled(PowerOfChoices(counter_draw(4, choices)), those)
    counts = Counter(picks(policy, 5000))
    assert all(abs(count - 500) < 5 * 500**0.5 for count in counts.values())


def test_more_choices_than_members_compare_them_all() -> None:
    a, b = members(1, 1)
    a.in_flight = 1
    policy = filled(PowerOfChoices(counter_draw(3, 5)), [a, b])
    assert picks(policy, 100) == "b" * 100


def test_a_number_of_choices_out_of_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match="choices: 9 is out of bounds; allowed: 1 to 8"):
        counter_draw(1, 9)
