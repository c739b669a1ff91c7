"""Exact values of textbook systems, each with its source; `test_formulas.py` checks them against one another.

Rates are per second, times in seconds. `rho` is a load as a fraction of capacity. Books: Kleinrock, Queueing Systems vol. 1
(1975) and 2 (1976); Harchol-Balter, Performance Modeling and Design of Computer Systems (2013); Lavenberg (ed.), Computer
Performance Modeling Handbook (1983).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

__all__ = [
    "BirthDeath",
    "ClosedNetwork",
    "Moments",
    "batch_service_rates",
    "birth_death",
    "che_hit_ratio",
    "closed_network",
    "erlang_a",
    "erlang_b",
    "erlang_c",
    "expected_order_statistic",
    "lru_hit_ratio",
    "md1k_loss",
    "mean_value_analysis",
    "mg1_wait",
    "mm1_fraction_within",
    "mmc_wait",
    "power_of_choices_response",
    "processor_sharing_response",
    "zipf",
]


@dataclass(frozen=True)
class Moments:
    """First two moments of a service time."""

    mean: float
    second: float


def erlang_b(offered: float, servers: int) -> float:
    """Loss probability of M/M/c/c with `offered` = lambda/mu Erlang.

    By Jagerman's recursion B(c) = a B(c-1) / (c + a B(c-1)); Erlang 1917, Kleinrock 1 (3.45).
    """
    blocking = 1.0
    for c in range(1, servers + 1):
        blocking = offered * blocking / (c + offered * blocking)
    return blocking


def erlang_c(offered: float, servers: int) -> float:
    """Probability that an arrival waits in M/M/c: c B / (c - a (1 - B)); Erlang 1917, Harchol-Balter (14.8)."""
    blocking = erlang_b(offered, servers)
    return servers * blocking / (servers - offered * (1 - blocking))


def mmc_wait(rate: float, service: float, servers: int) -> float:
    """Mean wait in the queue of M/M/c: C / (c mu - lambda); Harchol-Balter 14.3."""
    return erlang_c(rate * service, servers) / (servers / service - rate)


def mm1_fraction_within(rate: float, service: float, within: float) -> float:
    """P(response <= t) of M/M/1, first come first served: 1 - exp(-(mu - lambda) t); Kleinrock 1 (5.119)."""
    return -math.expm1(-(1 / service - rate) * within)


def mg1_wait(rate: float, service: Moments) -> float:
    """Mean wait in the queue of M/G/1: lambda E[S^2] / (2 (1 - rho)).

    Pollaczek 1930, Khinchine 1932; Kleinrock 1 (5.68).
    """
    return rate * service.second / (2 * (1 - rate * service.mean))


def processor_sharing_response(rate: float, mean: float) -> float:
    """Mean response of M/G/1 under processor sharing: E[S] / (1 - rho), whatever the distribution.

    Kleinrock 2 (4.17); insensitivity: Sakata, Noguchi and Oizumi 1971.
    """
    return mean / (1 - rate * mean)


@dataclass(frozen=True)
class BirthDeath:
    """Stationary state probabilities of a birth-death chain, and its arrival rate in each state."""

    probabilities: tuple[float, ...]
    arrival_rates: tuple[float, ...]

    def mean(self, of: Callable[[int], float] = float) -> float:
        """E[of(n)], by default the mean number in the system."""
        return math.fsum(p * of(n) for n, p in enumerate(self.probabilities))

    @property
    def throughput(self) -> float:
        """Rate of arrivals that enter; all of them leave again."""
        pairs = zip(self.probabilities, self.arrival_rates, strict=True)
        return math.fsum(p * rate for p, rate in pairs)


def birth_death(
    arrivals: Callable[[int], float], departures: Callable[[int], float], states: int
) -> BirthDeath:
    """The chain on 0..states-1 with birth rate `arrivals(n)`, death rate `departures(n)`; Kleinrock 1 (3.11).

    p_n = p_0 prod lambda_{i-1}/mu_i. For an unbounded system choose `states` so that the rest has no weight.
    """
    logs = [0.0]
    for n in range(1, states):
        logs.append(logs[-1] + math.log(arrivals(n - 1)) - math.log(departures(n)))
    top = max(logs)
    weights = [math.exp(x - top) for x in logs]
    total = math.fsum(weights)
    rates = [arrivals(n) for n in range(states - 1)] + [0.0]
    return BirthDeath(tuple(w / total for w in weights), tuple(rates))


def erlang_a(
    rate: float, service: float, servers: int, patience: float, states: int = 400
) -> BirthDeath:
    """M/M/c+M: those who wait leave at rate 1/patience each (Palm 1957; Garnett, Mandelbaum and Reiman 2002).

    P(abandon) = E[queue] / (patience * rate), mean wait of all = E[queue] / rate (Little).
    """
    return birth_death(
        lambda _: rate,
        lambda n: min(n, servers) / service + max(0, n - servers) / patience,
        states,
    )


def batch_service_rates(a: float, b: float, most: int) -> Callable[[int], float]:
    """Completions per second with n jobs, at most `most` of them in the batch: m/(a + b m), m = min(n, most).

    A step of a batch of m takes time linear in m and serves all of them, so jobs of exponential size, in mean one unit of
    work, end at this total rate. Linear batch times: Inoue, Queueing analysis of GPU-based inference servers with dynamic
    batching (2021).
    """

    def rate(n: int) -> float:
        batch = min(n, most)
        return batch / (a + b * batch)

    return rate


def power_of_choices_response(load: float, choices: int, service: float = 1.0) -> float:
    """Mean response of n -> infinity M/M/1 queues of which each arrival joins the shortest of d: mean field.

    sum over i >= 1 of load^((d^i - d)/(d - 1)). Vvedenskaya, Dobrushin and Karpelevich 1996; Mitzenmacher 2001, Theorem 1.
    A fleet of n differs by O(1/n).
    """
    if choices == 1:
        return service / (1 - load)
    total, i = 0.0, 1
    while (exponent := (choices**i - choices) // (choices - 1)) * -math.log(load) < 50:
        total += load**exponent
        i += 1
    return service * total


@dataclass(frozen=True)
class ClosedNetwork:
    """Throughput, and the mean time of a cycle without thinking."""

    throughput: float
    response: float


def mean_value_analysis(demands: Sequence[float], think: float, users: int) -> ClosedNetwork:
    """Exact MVA for single-server stations; Reiser and Lavenberg 1980. R_k = D_k (1 + Q_k(n-1)), X = n / (Z + R)."""
    queue = [0.0] * len(demands)
    throughput = response = 0.0
    for n in range(1, users + 1):
        times = [d * (1 + q) for d, q in zip(demands, queue, strict=True)]
        response = math.fsum(times)
        throughput = n / (think + response)
        queue = [throughput * t for t in times]
    return ClosedNetwork(throughput, response)


def closed_network(
    stations: Sequence[tuple[float, int]], think: float, users: int
) -> ClosedNetwork:
    """A closed product-form network of (demand, servers) stations and think time, by convolution.

    Buzen 1973; servers enter as rates min(n, c)/D. Stable, unlike MVA with load-dependent stations, because only positive
    terms are added. X = G(N-1)/G(N).
    """
    constant = [think**n / math.factorial(n) for n in range(users + 1)]
    for demand, servers in stations:
        station = [1.0]
        for n in range(1, users + 1):
            station.append(station[-1] * demand / min(n, servers))
        constant = [
            math.fsum(station[k] * constant[n - k] for k in range(n + 1)) for n in range(users + 1)
        ]
    throughput = constant[users - 1] / constant[users]
    return ClosedNetwork(throughput, users / throughput - think)


def expected_order_statistic(mean: float, count: int, rank: int) -> float:
    """When the `rank`-th of `count` exponential times is over: mean * (1/count + ... + 1/(count - rank + 1)).

    Rényi 1953: the gaps between order statistics are independent exponentials.
    """
    return mean * math.fsum(1 / (count - i) for i in range(rank))


def zipf(items: int, exponent: float) -> tuple[float, ...]:
    """Popularities proportional to i^-exponent."""
    weights = [i**-exponent for i in range(1, items + 1)]
    total = math.fsum(weights)
    return tuple(w / total for w in weights)


def lru_hit_ratio(popularity: Sequence[float], size: int) -> float:
    """Exact hit ratio of LRU under independent references; King 1971.

    The stationary probability of the stack (i1, .., ik) is prod p_ij / (1 - p_i1 - .. - p_i(j-1)); a hit asks one of them.
    Sums over all ordered selections: small catalogues only.
    """
    total = 0.0
    for chosen in combinations(range(len(popularity)), size):
        held = math.fsum(popularity[i] for i in chosen)
        for stack in permutations(chosen):
            probability, left = 1.0, 1.0
            for i in stack:
                probability *= popularity[i] / left
                left -= popularity[i]
            total += probability * held
    return total


def che_hit_ratio(popularity: Sequence[float], size: int) -> float:
    """Hit ratio of a large LRU cache: sum p (1 - e^(-p T)) with sum (1 - e^(-p T)) = size.

    Fagin 1977; Che, Tung and Wang 2002. Exact as the catalogue grows, no exact value for a finite one.
    """
    p = np.asarray(popularity)
    low, high = 0.0, float(size)
    while float(-np.expm1(-p * high).sum()) < size:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if float(-np.expm1(-p * middle).sum()) < size:
            low = middle
        else:
            high = middle
    return float((p * -np.expm1(-p * high)).sum())


def md1k_loss(rate: float, service: float, places: int) -> float:
    """Loss probability of M/D/1 with `places` in the system, the one in service among them.

    The embedded chain at departures gives the shape; loss = 1 - 1/(pi_0 + rho). Keilson 1965; Takagi, Queueing Analysis 2
    (1993), 1.2. It is a token bucket too: a bucket of B tokens that refills at r and lets Poisson arrivals through lacks
    at any instant what an M/D/1 server of service time 1/r has as unfinished work, and work <= B - 1 services exactly
    when fewer than B are in that system.
    """
    load = rate * service
    arrivals = [math.exp(-load)]
    for k in range(1, places + 1):
        arrivals.append(arrivals[-1] * load / k)
    # Departures leave 0..K-1 behind: pi_{j+1} a_0 = pi_j - pi_0 a_j - sum_{i=1..j} pi_i a_{j-i+1}.
    pi = [1.0]
    for j in range(places - 1):
        inflow = pi[0] * arrivals[j] + math.fsum(
            pi[i] * arrivals[j - i + 1] for i in range(1, j + 1)
        )
        pi.append((pi[j] - inflow) / arrivals[0])
    empty = pi[0] / math.fsum(pi)
    return 1 - 1 / (empty + load)
