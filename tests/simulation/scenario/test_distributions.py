"""Every distribution: draws by inversion agree with its own mean, variance and quantiles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from simulation.scenario.distributions import AnyDistribution, Distribution, Floats
from simulation.scenario.parametric import Hyperexponential
from simulation.scenario.random_streams import generator

adapter: TypeAdapter[AnyDistribution] = TypeAdapter(Distribution)

EXAMPLES: list[dict[str, object]] = [
    {"kind": "constant", "value": 2.5},
    {"kind": "exponential", "mean": 0.7},
    {"kind": "uniform", "low": 1, "high": 4},
    {"kind": "lognormal", "median": 1.2, "sigma": 0.45},
    {"kind": "gamma", "mean": 3, "cv": 0.5},
    {"kind": "gamma", "mean": 3, "cv": 1.8},
    {"kind": "hyperexponential", "probabilities": [0.9, 0.1], "means": [0.5, 5]},
    {"kind": "weibull", "scale": 2, "shape": 0.8},
    {"kind": "pareto", "minimum": 1, "alpha": 4.5},
    {"kind": "pareto", "minimum": 1, "alpha": 1, "maximum": 50},
    {"kind": "empirical", "values": [3, 1, 2], "weights": [1, 2, 1]},
    {"kind": "quantiles", "points": [[0, 0.4], [0.5, 1.2], [0.95, 1.9], [1, 4]]},
]
NAMES = [f"{e['kind']}{i}" for i, e in enumerate(EXAMPLES)]

positive = st.floats(min_value=1e-3, max_value=1e3)
unit = st.floats(min_value=1e-9, max_value=1 - 1e-9)


def parse(document: object) -> AnyDistribution:
    return adapter.validate_python(document)


def grid(n: int) -> Floats:
    return (np.arange(n) + 0.5) / n


def families() -> st.SearchStrategy[AnyDistribution]:
    def build(kind: str, **parts: st.SearchStrategy[float]) -> st.SearchStrategy[AnyDistribution]:
        return st.fixed_dictionaries({"kind": st.just(kind), **parts}).map(parse)

    cv = st.floats(min_value=0.1, max_value=4)
    return st.one_of(
        build("constant", value=positive),
        build("exponential", mean=positive),
        build("lognormal", median=positive, sigma=st.floats(0, 2)),
        build("gamma", mean=positive, cv=cv),
        build("hyperexponential", mean=positive, cv=st.floats(1, 5)),
        build("weibull", scale=positive, shape=st.floats(0.4, 5)),
        build("pareto", minimum=positive, alpha=st.floats(1.1, 6)),
    )


@given(distribution=families(), low=unit, high=unit)
@settings(deadline=None)
def test_a_quantile_never_falls_and_the_scalar_agrees_with_the_column(
    distribution: AnyDistribution, low: float, high: float
) -> None:
    low, high = min(low, high), max(low, high)
    assert 0 <= distribution.quantile(low) <= distribution.quantile(high) * (1 + 1e-12)
    column = distribution.quantiles(np.array([low, high]))
    scalars = [distribution.quantile(low), distribution.quantile(high)]
    # Near 0 a quantile that is iterated for is as fine as its logarithm is, and no finer.
    least = distribution._tolerance if isinstance(distribution, Hyperexponential) else 1e-300
    assert column == pytest.approx(scalars, rel=1e-7, abs=least)


@pytest.mark.parametrize("document", EXAMPLES, ids=NAMES)
def test_the_mean_and_variance_are_those_of_the_quantile_function(document: object) -> None:
    distribution = parse(document)
    values = distribution.quantiles(grid(2_000_000))
    assert values.mean() == pytest.approx(distribution.mean(), rel=2e-3)
    assert values.var() == pytest.approx(distribution.variance(), rel=2e-2, abs=1e-12)


@pytest.mark.parametrize("document", EXAMPLES, ids=NAMES)
def test_a_sample_has_the_mean_within_four_standard_errors(document: object) -> None:
    distribution = parse(document)
    sample = distribution.sample(generator(3, "test"), 40_000)
    error = math.sqrt(distribution.variance() / len(sample))
    assert abs(sample.mean() - distribution.mean()) <= 4 * error + 1e-12


@pytest.mark.parametrize("document", EXAMPLES, ids=NAMES)
def test_a_sample_takes_one_uniform_a_value_so_that_more_values_change_none(
    document: object,
) -> None:
    distribution = parse(document)
    short = distribution.sample(generator(3, "test"), 10)
    long = distribution.sample(generator(3, "test"), 1000)
    assert np.array_equal(short, long[:10])


@pytest.mark.parametrize("document", EXAMPLES, ids=NAMES)
def test_a_distribution_survives_a_round_trip_and_cannot_be_changed(document: object) -> None:
    distribution = parse(document)
    assert parse(distribution.model_dump(mode="json")) == distribution
    with pytest.raises(ValidationError, match="frozen"):
        distribution.kind = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("spelling", "mean", "cv"),
    [
        ({"kind": "lognormal", "mean": 3, "cv": 1.5}, 3, 1.5),
        ({"kind": "hyperexponential", "mean": 2, "cv": 2.5}, 2, 2.5),
        ({"kind": "hyperexponential", "mean": 2, "cv": 1}, 2, 1),
        ({"kind": "weibull", "mean": 2, "shape": 1}, 2, 1),
        ({"kind": "gamma", "mean": 2, "cv": 0.5}, 2, 0.5),
    ],
)
def test_the_other_spellings_state_the_mean_and_the_coefficient_of_variation(
    spelling: object, mean: float, cv: float
) -> None:
    distribution = parse(spelling)
    assert distribution.mean() == pytest.approx(mean)
    assert math.sqrt(distribution.variance()) / distribution.mean() == pytest.approx(cv)


def test_a_lognormal_by_median_and_p95_has_these_two_quantiles() -> None:
    distribution = parse({"kind": "lognormal", "median": 1.235, "p95": 1.891})
    assert distribution.quantile(0.5) == pytest.approx(1.235)
    assert distribution.quantile(0.95) == pytest.approx(1.891)


def test_an_empirical_distribution_returns_its_values_in_proportion_to_their_weights() -> None:
    distribution = parse({"kind": "empirical", "values": [3, 1, 2], "weights": [1, 2, 1]})
    values, counts = np.unique(distribution.quantiles(grid(400)), return_counts=True)
    assert values.tolist() == [1, 2, 3]
    assert counts.tolist() == [200, 100, 100]


def test_a_number_stands_for_a_constant_even_as_the_text_that_yaml_makes_of_1e_minus_3() -> None:
    assert parse(3).model_dump() == {"kind": "constant", "value": 3.0}
    assert parse("1e-3").mean() == 0.001


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"kind": "pareto", "minimum": 1, "alpha": 1}, "has no mean: set alpha > 1, or a maximum"),
        ({"kind": "pareto", "minimum": 2, "alpha": 2, "maximum": 1}, "not greater than minimum"),
        ({"kind": "exponential", "mean": 0}, "greater than 0"),
        ({"kind": "exponential", "mean": float("inf")}, "finite"),
        ({"kind": "uniform", "low": 2, "high": 1}, "low .* greater than high"),
        ({"kind": "constant", "value": -1}, "greater than or equal to 0"),
        ({"kind": "lognormal", "median": 2, "p95": 1}, "less than the median"),
        ({"kind": "hyperexponential", "mean": 1, "cv": 0.5}, "cv >= 1"),
        ({"kind": "hyperexponential", "probabilities": [0.5], "means": [1, 2]}, "1 probabilities"),
        ({"kind": "hyperexponential", "probabilities": [0.5, 0.4], "means": [1, 2]}, "add up"),
        ({"kind": "empirical", "values": []}, "at least 1"),
        ({"kind": "empirical", "values": [1], "weights": [1, 2]}, "1 values but 2 weights"),
        ({"kind": "quantiles", "points": [[0.1, 1], [1, 2]]}, "from 0.1 to 1"),
        ({"kind": "quantiles", "points": [[0, 2], [1, 1]]}, "values fall"),
        ({"kind": "normal", "mean": 1}, "does not match any of the expected tags"),
        ("soon", "valid dictionary"),
        (True, "valid dictionary"),
    ],
)
def test_a_distribution_that_makes_no_sense_is_refused(document: object, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        parse(document)
