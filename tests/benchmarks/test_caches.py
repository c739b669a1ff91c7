"""What the benchmark of the caches measures without a clock must hold on any machine."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.benchmarks.caches import che_hit_ratio, stampede, zipf


def test_lru_under_zipf_hits_as_often_as_che_s_approximation_says() -> None:
    result = asyncio.run(zipf())
    assert result["zipf_hit_ratio_error"] < 0.01


def test_che_s_approximation_is_exact_for_equal_items() -> None:
    assert che_hit_ratio(np.full(100, 0.01), 25) == pytest.approx(0.25)


def test_a_stampede_computes_once() -> None:
    assert asyncio.run(stampede())["stampede_computes"] == 1
