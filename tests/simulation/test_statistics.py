"""Known values, independent oracles (scipy) and properties of the statistics that every report stands on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from simulation.statistics import (
    batch_means,
    block_bootstrap_quantiles,
    block_weights,
    compare_paired,
    compare_pairs,
    holm,
    mean_interval,
    mser5,
    quantile,
    quantile_interval,
    relative_precision,
    time_weighted_mean,
)

values = st.floats(-1e6, 1e6, allow_nan=False)
samples = st.lists(values, min_size=2, max_size=200)


def ar1(generator: np.random.Generator, n: int, phi: float) -> np.ndarray:
    """A stationary autoregression with mean 0: the textbook case of a series that remembers."""
    series = np.empty(n)
    series[0] = generator.normal(scale=1 / math.sqrt(1 - phi**2))
    for i, noise in enumerate(generator.normal(size=n - 1), start=1):
        series[i] = phi * series[i - 1] + noise
    return series


class TestQuantiles:
    def test_the_median_interval_of_ten_values_is_the_second_and_the_ninth(self) -> None:
        interval = quantile_interval(range(1, 11), 0.5)
        assert (interval.low, interval.estimate, interval.high) == (2, 5.5, 9)

    def test_ten_replications_say_nothing_above_their_p99(self) -> None:
        interval = quantile_interval(range(10), 0.99)
        assert interval.high == math.inf
        assert math.isfinite(interval.low)

    @given(sample=samples, p=st.floats(0.05, 0.95), confidence=st.sampled_from([0.8, 0.9, 0.95]))
    def test_the_order_statistic_interval_is_scipys(
        self, sample: list[float], p: float, confidence: float
    ) -> None:
        ours = quantile_interval(sample, p, confidence)
        theirs: Any = stats.quantile_test(sample, q=0, p=p).confidence_interval(confidence)
        assert ours.low == (-math.inf if math.isnan(theirs.low) else theirs.low)
        assert ours.high == (math.inf if math.isnan(theirs.high) else theirs.high)

    @given(sample=samples, p=st.floats(0.01, 0.99))
    def test_the_interval_contains_a_value_of_the_quantile_and_grows_with_the_confidence(
        self, sample: list[float], p: float
    ) -> None:
        narrow, wide = (quantile_interval(sample, p, c) for c in (0.5, 0.99))
        assert wide.low <= narrow.low <= narrow.high <= wide.high

    def test_the_quantile_is_pandas_and_numpys(self) -> None:
        assert quantile([4.0, 1.0, 2.0, 3.0], 0.25) == 1.75
        assert math.isnan(quantile([], 0.5))

    @pytest.mark.parametrize("bad", [[], [1.0, math.nan], [[1.0, 2.0]]])
    def test_what_has_no_quantile_interval_is_refused(self, bad: list[float]) -> None:
        with pytest.raises(ValueError, match="quantile interval"):
            quantile_interval(bad, 0.5)


class TestMeans:
    def test_the_mean_interval_is_student_s(self) -> None:
        sample = [4.1, 5.2, 6.3, 5.9, 4.4]
        interval = mean_interval(sample)
        expected = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
        assert interval.low == pytest.approx(expected.low)
        assert interval.high == pytest.approx(expected.high)

    @given(
        sample=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=50), shift=st.floats(-1e3, 1e3)
    )
    def test_the_mean_interval_moves_with_the_sample(
        self, sample: list[float], shift: float
    ) -> None:
        here, there = mean_interval(sample), mean_interval(np.asarray(sample) + shift)
        assert there.low == pytest.approx(here.low + shift, abs=1e-6)
        assert there.half_width == pytest.approx(here.half_width, abs=1e-6)

    def test_batch_means_of_a_series_that_remembers_cover_the_truth_where_a_naive_interval_does_not(
        self,
    ) -> None:
        generator = np.random.default_rng(7)
        runs = [ar1(generator, 4000, 0.9) for _ in range(200)]
        batched = np.mean([batch_means(r, 20).interval.contains(0.0) for r in runs])
        naive = np.mean([mean_interval(r).contains(0.0) for r in runs])
        assert batched > 0.88
        assert naive < 0.5

    def test_short_batches_betray_themselves_by_their_correlation(self) -> None:
        series = ar1(np.random.default_rng(3), 4000, 0.99)
        assert batch_means(series, 400).lag1_correlation > 0.5
        assert (
            abs(batch_means(np.random.default_rng(3).normal(size=4000), 40).lag1_correlation) < 0.4
        )

    def test_batch_means_drop_the_remainder_from_the_start(self) -> None:
        assert batch_means([99.0, 1, 3, 5, 7], batches=2).means == (2.0, 6.0)

    def test_the_time_weighted_mean_weighs_by_how_long_a_value_held(self) -> None:
        assert time_weighted_mean([0, 1, 4], [2, 6, 0], end_s=10) == pytest.approx(2.0)

    @given(st.lists(st.tuples(st.floats(0.01, 10), values), min_size=1, max_size=30))
    def test_the_time_weighted_mean_lies_within_the_values(
        self, steps: list[tuple[float, float]]
    ) -> None:
        spans = [s for s, _ in steps]
        at = np.concatenate([[0.0], np.cumsum(spans)])
        held = [v for _, v in steps]
        mean = time_weighted_mean(at[:-1], held, end_s=float(at[-1]))
        assert min(held) - 1e-6 <= mean <= max(held) + 1e-6

    def test_a_clock_that_goes_backwards_is_refused(self) -> None:
        with pytest.raises(ValueError, match="backwards"):
            time_weighted_mean([0, 2, 1], [1, 1, 1], end_s=3)


class TestWarmUp:
    def test_a_ramp_before_a_steady_state_is_dropped(self) -> None:
        noise = np.random.default_rng(1).normal(size=2000)
        series = np.where(np.arange(2000) < 200, 20 - np.arange(2000) / 10, 0) + noise
        warm_up = mser5(series)
        assert warm_up.settled
        assert 150 <= warm_up.truncate <= 260

    def test_a_steady_series_loses_next_to_nothing(self) -> None:
        warm_up = mser5(np.random.default_rng(2).normal(10, 1, size=2000))
        assert warm_up.settled
        assert warm_up.truncate <= 200

    def test_a_queue_that_never_settles_is_told_to_run_longer(self) -> None:
        assert not mser5(np.linspace(0, 100, 1000)).settled

    def test_too_few_values_are_not_called_settled(self) -> None:
        assert not mser5(np.ones(49)).settled

    @settings(max_examples=50)
    @given(st.lists(st.floats(0, 1e3), min_size=50, max_size=300))
    def test_it_is_the_minimum_of_its_definition(self, series: list[float]) -> None:
        means = np.asarray(series)[: len(series) // 5 * 5].reshape(-1, 5).mean(axis=1)
        n = means.size
        scores = [
            float(((means[k:] - means[k:].mean()) ** 2).sum()) / (n - k) ** 2
            for k in range(n // 2 + 1)
        ]
        chosen = mser5(series).truncate // 5
        assert scores[chosen] == pytest.approx(min(scores), rel=1e-6, abs=1e-6)


class TestStopping:
    def test_it_never_stops_before_ten_replications(self) -> None:
        precision = relative_precision([1.0, 1.0, 1.0], gamma=0.1)
        assert not precision.reached
        assert precision.replications_needed == 10

    def test_it_stops_when_the_half_width_is_gamma_over_one_plus_gamma(self) -> None:
        sample = [0.9, 1.1] * 10
        ratio = mean_interval(sample).half_width
        gamma = ratio / (1 - ratio)  # solves ratio = gamma / (1 + gamma)
        assert relative_precision(sample, gamma * 1.01).reached
        assert not relative_precision(sample, gamma * 0.99).reached

    def test_it_says_about_how_many_replications_it_takes(self) -> None:
        generator = np.random.default_rng(5)
        asked = relative_precision(
            generator.normal(1, 0.5, size=10), gamma=0.05
        ).replications_needed
        enough = relative_precision(generator.normal(1, 0.5, size=2 * asked), gamma=0.05)
        assert enough.reached

    def test_a_mean_of_zero_is_never_relatively_precise(self) -> None:
        assert not relative_precision([-1.0, 1.0] * 10, gamma=0.1).reached


class TestComparison:
    def test_holm_adjusts_as_in_the_textbook(self) -> None:
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
    def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(self, p: list[float]) -> None:
        adjusted = holm(p)
        for raw, new in zip(p, adjusted, strict=True):
            assert raw <= new <= min(1.0, len(p) * raw) + 1e-12
        order = np.argsort(p, kind="stable")
        assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()

    def test_one_pair_is_the_paired_t_test(self) -> None:
        a, b = [10.1, 11.9, 10.4, 13.2], [9.0, 11.1, 9.9, 12.0]
        (difference,) = compare_paired(a, {"faster": b})
        assert difference.p_value == pytest.approx(stats.ttest_rel(b, a).pvalue)
        assert difference.settled
        assert difference.interval.high < 0

    def test_common_random_numbers_settle_what_independent_samples_cannot(self) -> None:
        luck = np.random.default_rng(0).normal(0, 10, size=12)
        noise = np.random.default_rng(1).normal(0, 0.1, size=12)
        (difference,) = compare_paired(luck, {"b": luck + 1 + noise})
        assert difference.settled
        assert stats.ttest_ind(luck, luck + 1 + noise).pvalue > 0.5

    def test_what_cannot_be_ranked_says_how_many_replications_would_settle_it(self) -> None:
        generator = np.random.default_rng(4)
        base = np.zeros(10)
        (open_,) = compare_paired(base, {"b": generator.normal(0.2, 1.0, size=10)})
        assert not open_.settled
        assert open_.replications_needed > 10

    @given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([0.9, 0.95, 0.999]))
    def test_what_is_not_settled_needs_more_replications_than_it_has(
        self, seed: int, n: int, confidence: float
    ) -> None:
        sample = np.random.default_rng(seed).normal(0.5, 1.0, size=n)
        (difference,) = compare_paired(np.zeros(n), {"b": sample}, confidence)
        assert difference.settled == (difference.replications_needed <= n)

    def test_every_pair_is_compared_within_one_family(self) -> None:
        generator = np.random.default_rng(2)
        base = generator.normal(0, 5, size=12)
        noise = generator.normal(0, 0.1, size=(2, 12))
        samples = {"a": base, "b": base + 1 + noise[0], "c": base + 3 + noise[1]}
        pairs = compare_pairs(samples)
        assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
        assert pairs["b", "c"].name == "c - b"
        assert pairs["b", "c"].interval.contains(2.0)
        assert all(pair.settled for pair in pairs.values())
        (alone,) = compare_paired(base, {"b": samples["b"]})
        assert pairs["a", "b"].interval.half_width > alone.interval.half_width
        with pytest.raises(ValueError, match="they must be the same ones"):
            compare_pairs({"a": [1, 2], "b": [1, 2, 3]})

    def test_equal_policies_are_never_ranked(self) -> None:
        (same,) = compare_paired([1.0, 2.0, 3.0], {"same": [1.0, 2.0, 3.0]})
        assert (same.p_value, same.settled) == (1.0, False)

    def test_unequal_numbers_of_replications_are_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match="b has 2 replications, the baseline 3"):
            compare_paired([1, 2, 3], {"b": [1, 2]})


class TestBlockBootstrap:
    def test_resamples_draw_as_many_blocks_as_there_are(self) -> None:
        weights = block_weights(12, 50, np.random.default_rng(0))
        assert weights.shape == (50, 12)
        assert (weights.sum(axis=1) == 12).all()

    @given(st.lists(values, min_size=1, max_size=100), st.sampled_from([0.1, 0.5, 0.95, 1.0]))
    def test_every_block_once_gives_the_sample_quantile(
        self, sample: list[float], p: float
    ) -> None:
        block = np.arange(len(sample)) % 4
        (row,) = block_bootstrap_quantiles(sample, block, np.ones((1, 4)), [p])
        assert row[0] == np.quantile(sample, p, method="inverted_cdf")

    def test_it_covers_the_median_of_a_run_that_remembers(self) -> None:
        generator = np.random.default_rng(11)
        hits = 0
        for _ in range(100):
            series = ar1(generator, 3000, 0.9)
            weights = block_weights(30, 200, generator)
            medians = block_bootstrap_quantiles(series, np.arange(3000) // 100, weights, [0.5])[
                :, 0
            ]
            low, high = np.quantile(medians, [0.025, 0.975])
            hits += bool(low <= 0 <= high)
        assert hits >= 85

    def test_a_large_sample_is_thinned_without_moving_its_tail(self) -> None:
        sample = np.random.default_rng(0).exponential(size=50_000)
        (row,) = block_bootstrap_quantiles(
            sample, np.arange(50_000) // 2500, np.ones((1, 20)), [0.99]
        )
        assert row[0] == pytest.approx(np.quantile(sample, 0.99), rel=0.01)
