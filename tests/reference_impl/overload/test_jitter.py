"""Waits between attempts and the draws behind them."""

from __future__ import annotations

import hashlib
import statistics

import pytest

from reference_impl.deployment import RetrySpec
from reference_impl.overload.jitter import full_jitter_s, hashed_uniform


def test_the_longest_wait_doubles_up_to_its_bound() -> None:
    retry = RetrySpec(backoff_s=0.5, backoff_max_s=3.0)
    assert [full_jitter_s(retry, n, 1.0) for n in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_full_jitter_reaches_down_to_no_wait_at_all() -> None:
    assert full_jitter_s(RetrySpec(), 3, 0.0) == 0.0


def test_a_draw_depends_on_seed_purpose_request_and_attempt_only() -> None:
    draw = hashed_uniform(7)
    assert draw("backoff", 1, 0) == hashed_uniform(7)("backoff", 1, 0)
    others = {
        hashed_uniform(8)("backoff", 1, 0),
        draw("breaker", 1, 0),
        draw("backoff", 2, 0),
        draw("backoff", 1, 1),
    }
    assert len(others | {draw("backoff", 1, 0)}) == 5


def test_a_draw_is_a_keyed_hash_of_its_name_so_every_process_has_the_same() -> None:
    digest = hashlib.blake2b(
        b"backoff\x0042\x001", digest_size=8, key=(1).to_bytes(16, "little")
    ).digest()
    expected = int.from_bytes(digest, "little") / 2**64
    assert hashed_uniform(1)("backoff", 42, 1) == pytest.approx(expected, abs=1e-15)


def test_draws_are_uniform() -> None:
    draw = hashed_uniform(3)
    values = [draw("backoff", i, 0) for i in range(20_000)]
    assert min(values) > 0.0
    assert max(values) < 1.0
    # Standard errors: 0.0020 of the mean, 0.0013 of the standard deviation; four of each.
    assert statistics.fmean(values) == pytest.approx(0.5, abs=0.008)
    assert statistics.stdev(values) == pytest.approx(12**-0.5, abs=0.0052)
