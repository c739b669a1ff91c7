"""The textbook systems: how long each is played, what is looked at, and what theory says of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reference_impl.telemetry import RequestRecord
from tests.theory import formulas as f
from tests.theory.observing import Estimate, Observable, Replication, estimate, replicate

__all__ = ["CASES", "Case", "play"]


@dataclass(frozen=True)
class Case:
    """One system of systems.yaml.

    Attributes:
        exact: value of each observable by its name.
        source: the formula's name, for people.
        warm_s: the first requests, sent into an empty system, are not counted. tail_s: nor are the last, where later
            arrivals would have slowed them down.
    """

    exact: Mapping[str, float]
    observe: Mapping[str, Observable]
    source: str
    horizon_s: float = 3000.0
    warm_s: float = 300.0
    tail_s: float = 0.0
    replications: int = 25


def play(system: str) -> dict[str, Estimate]:
    """Each observable of the system over all replications, by name; every system has seeds, so luck, of its own."""
    case = CASES[system]
    first_seed = zlib.crc32(system.encode()) * 1000
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in case.exact}
    for number in range(case.replications):
        replication = replicate(
            system,
            first_seed + number,
            from_s=case.warm_s,
            until_s=case.horizon_s - case.tail_s,
            horizon_s=case.horizon_s,
        )
        for name, seen in pairs.items():
            seen.append(case.observe[name](replication))
    return {name: estimate(case.exact[name], seen) for name, seen in pairs.items()}


# Observables. Each returns (total, count).


def _of_requests(
    value: Callable[[RequestRecord], float], among: Callable[[RequestRecord], bool] | None = None
) -> Observable:
    def observe(replication: Replication) -> tuple[float, float]:
        chosen = [r for r in replication.requests if among is None or among(r)]
        return math.fsum(map(value, chosen)), len(chosen)

    return observe


def _answered(r: RequestRecord) -> bool:
    return r.outcome == "ok"


def _latency(r: RequestRecord) -> float:
    return r.done_s - r.intended_s


def _wait_until_served_or_gone(r: RequestRecord) -> float:
    return r.instance_wait_s if r.outcome == "ok" else r.done_s - r.sent_s


def _outcome(outcome: str) -> Observable:
    return _of_requests(lambda r: r.outcome == outcome)


def _throughput(replication: Replication) -> tuple[float, float]:
    return len(replication.requests), replication.window_s


def _boot_times(replication: Replication) -> list[float]:
    """Boot times of the instances that were ordered together."""
    started: dict[str, float] = {}
    booted: list[tuple[float, float]] = []
    for event in replication.events:
        if event.detail.get("state") == "booting":
            started[event.subject] = event.t_s
        elif event.detail.get("state") == "ready":
            booted.append((started[event.subject], event.t_s - started[event.subject]))
    together = max((at_s for at_s, _ in booted), default=0.0)
    return [boot_s for at_s, boot_s in booted if at_s == together]


def _boots_within(within_s: float) -> Observable:
    def observe(replication: Replication) -> tuple[float, float]:
        boots = _boot_times(replication)
        return sum(boot_s <= within_s for boot_s in boots), len(boots)

    return observe


def _boot_of_rank(rank: int) -> Observable:
    return lambda replication: (sorted(_boot_times(replication))[rank - 1], 1)


RESPONSE = _of_requests(_latency, _answered)
WAIT = _of_requests(lambda r: r.instance_wait_s)
WAITED = _of_requests(lambda r: r.instance_wait_s > 0)
HIT = _of_requests(lambda r: r.cache == "l1")


# Systems.


def _mg1(rate: float, second_moment: float, source: str, **more: float) -> Case:
    """Service times have mean 1."""
    return Case(
        exact={
            "mean wait": f.mg1_wait(rate, f.Moments(1.0, second_moment)),
            "fraction that waits": rate,
        },
        observe={"mean wait": WAIT, "fraction that waits": WAITED},
        source=f"Pollaczek-Khinchine, {source}",
        **more,  # type: ignore[arg-type]
    )


def _fleet(count: int, mean_s: float, horizon_s: float) -> Case:
    return Case(
        exact={
            "booted within 30 s": -math.expm1(-30 / mean_s),
            "first boot": f.expected_order_statistic(mean_s, count, 1),
            "last boot": f.expected_order_statistic(mean_s, count, count),
        },
        observe={
            "booted within 30 s": _boots_within(30),
            "first boot": _boot_of_rank(1),
            "last boot": _boot_of_rank(count),
        },
        source="order statistics of the exponential (Rényi)",
        horizon_s=horizon_s,
        warm_s=0,
        replications=60,
    )


def _choices(choices: int) -> Case:
    return Case(
        exact={"mean response": f.power_of_choices_response(0.7, choices)},
        observe={"mean response": RESPONSE},
        source=f"mean field, d = {choices} (Vvedenskaya; Mitzenmacher)",
        horizon_s=36,
        warm_s=14,
        replications=12,
    )


def _lru(exact: float, source: str, warm: float, horizon: float, replications: int) -> Case:
    return Case(
        exact={"hit ratio": exact},
        observe={"hit ratio": HIT},
        source=source,
        horizon_s=horizon,
        warm_s=warm,
        replications=replications,
    )


def _bucket(rate: float, size: int) -> Case:
    return Case(
        exact={"refused": f.md1k_loss(rate, 1.0, size)},
        observe={"refused": _outcome("rate_limited")},
        source="M/D/1/K: the bucket's deficit is its unfinished work",
        warm_s=100,
    )


def _empirical_second_moment() -> float:
    values, weights = (0.25, 1.0, 3.0), (5.0, 4.0, 1.0)
    return sum(w * v**2 for v, w in zip(values, weights, strict=True)) / sum(weights)


_EMPIRICAL_MEAN = (5 * 0.25 + 4 * 1.0 + 1 * 3.0) / 10
_LOSS = f.birth_death(lambda _: 2.0, lambda n: float(min(n, 2)), 6)
_IMPATIENT = f.erlang_a(3.0, 1.0, 3, 2.0)
_BATCHING = f.birth_death(lambda _: 4.0, f.batch_service_rates(0.6, 0.1, 16), 600)
_CLOSED = f.closed_network([(0.3, 1), (1.0, 2)], 2.0, 8)

CASES: dict[str, Case] = {
    "M/M/1": Case(
        exact={
            "mean response": 1 / (1 - 0.7),
            "fraction that waits": 0.7,
            "answered within 2 s": f.mm1_fraction_within(0.7, 1.0, 2.0),
        },
        observe={
            "mean response": RESPONSE,
            "fraction that waits": WAITED,
            "answered within 2 s": _of_requests(lambda r: _latency(r) <= 2.0),
        },
        source="Kleinrock 1, 3.2 and 5.7",
        warm_s=400,
    ),
    "M/M/4": Case(
        exact={
            "mean wait": f.mmc_wait(2.8, 1.0, 4),
            "fraction that waits": f.erlang_c(2.8, 4),
        },
        observe={"mean wait": WAIT, "fraction that waits": WAITED},
        source="Erlang C",
        horizon_s=1500,
        warm_s=150,
    ),
    "M/D/1": _mg1(0.7, 1.0, "constant"),
    "M/lognormal/1": _mg1(0.6, 1 + 1.2**2, "lognormal of cv 1.2"),
    "M/gamma/1": _mg1(0.7, 1 + 0.5**2, "gamma of cv 0.5"),
    "M/hyperexponential/1": _mg1(0.5, 1 + 2.0**2, "hyperexponential of cv 2", warm_s=400),
    "M/empirical/1": Case(
        exact={
            "mean wait": f.mg1_wait(0.7, f.Moments(_EMPIRICAL_MEAN, _empirical_second_moment())),
            "fraction that waits": 0.7 * _EMPIRICAL_MEAN,
        },
        observe={"mean wait": WAIT, "fraction that waits": WAITED},
        source="Pollaczek-Khinchine, three values",
    ),
    "M/M/2/5": Case(
        exact={
            "lost": _LOSS.probabilities[-1],
            "mean response": _LOSS.mean() / _LOSS.throughput,
        },
        observe={"lost": _outcome("rejected"), "mean response": RESPONSE},
        source="birth-death",
        horizon_s=1200,
        warm_s=60,
    ),
    "Erlang-A": Case(
        exact={
            "left": _IMPATIENT.mean(lambda n: max(0, n - 3)) / 2.0 / 3.0,
            "mean wait of all": _IMPATIENT.mean(lambda n: max(0, n - 3)) / 3.0,
        },
        observe={
            "left": _outcome("cancelled"),
            "mean wait of all": _of_requests(_wait_until_served_or_gone),
        },
        source="Palm; Garnett et al.",
        horizon_s=1000,
        warm_s=60,
    ),
    "M/M/1 processor sharing": Case(
        exact={"mean response": f.processor_sharing_response(0.7, 1.0)},
        observe={"mean response": RESPONSE},
        source="Kleinrock 2, 4.4",
        warm_s=400,
        tail_s=200,
    ),
    "M/H2/1 processor sharing": Case(
        exact={"mean response": f.processor_sharing_response(0.7, 1.0)},
        observe={"mean response": RESPONSE},
        source="insensitivity (Sakata et al.), cv 2",
        warm_s=400,
        tail_s=200,
    ),
    "batching server": Case(
        exact={"mean response": _BATCHING.mean() / 4.0},
        observe={"mean response": RESPONSE},
        source="birth-death with n/(a + b n), a = 0.6, b = 0.1, n up to 16",
        horizon_s=500,
        warm_s=60,
        tail_s=20,
    ),
    "two choices of 500": _choices(2),
    "three choices of 500": _choices(3),
    "closed network": Case(
        exact={"throughput": _CLOSED.throughput, "mean response": _CLOSED.response},
        observe={"throughput": _throughput, "mean response": RESPONSE},
        source="convolution (Buzen), 8 users, stations of 1 and 2 servers",
        horizon_s=1500,
        warm_s=60,
        tail_s=60,
    ),
    "fleet with exponential boot time": _fleet(20, 30.0, 2.0),
    "scale-out with exponential boot time": _fleet(39, 30.0, 600.0),
    "LRU of 3 under Zipf over 8": _lru(
        f.lru_hit_ratio(f.zipf(8, 1.0), 3), "King, exact", 200, 3000, 20
    ),
    "LRU of 100 under Zipf over 1000": _lru(
        f.che_hit_ratio(f.zipf(1000, 0.8), 100), "Fagin; Che et al. (large caches)", 1500, 7500, 12
    ),
    "token bucket of 5": _bucket(1.2, 5),
    "token bucket of 1": _bucket(0.8, 1),
}
