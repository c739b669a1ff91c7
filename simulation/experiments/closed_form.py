"""What the operational laws say of a scenario before anything is simulated: bounds, and a first guess.

Bounds are hard (utilisation law: no station serves more than its servers can) and prune a search; the guess takes the
instances' slots for one M/G/c queue and is only where the search begins. Simulation decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from simulation.scenario.arrival_spec import (
    BatchArrivals,
    ConstantArrivals,
    GammaArrivals,
    PoissonArrivals,
)
from simulation.scenario.distribution_base import AnyDistribution
from simulation.scenario.endpoint import LimitsSpec, ProviderService, SelfHostedService
from simulation.scenario.schema import SLO, Scenario
from simulation.scenario.workload_spec import ZipfPrompts

__all__ = ["ClosedForm"]

_GRID: Final = (np.arange(2000) + 0.5) / 2000


@dataclass(frozen=True)
class ClosedForm:
    """The scenario's open-loop bounds. Retries, faults and CPU demands are left out: they only make it worse."""

    scenario: Scenario

    @cached_property
    def servers(self) -> int:
        """Slots of the largest fleet that the scenario may have."""
        deployment = self.scenario.deployment
        fleet = deployment.instances.initial
        if deployment.autoscaler.enabled:
            fleet = max(fleet, deployment.autoscaler.max_instances)
        return fleet * deployment.instances.concurrency

    @cached_property
    def times_s(self) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
        """Quantiles of the time that a call holds a slot while the endpoint is idle; None where it depends on the load."""
        endpoint = self.scenario.endpoint
        service = endpoint.service
        if isinstance(service, SelfHostedService):
            return None
        if isinstance(service, ProviderService):
            spec = self.scenario.workload
            first = _values(service.ttft_s) + _mean(spec.input_tokens) * service.prefill_s_per_token
            # Lengths and rates are independent: a product grid, thinned to its quantiles.
            lengths = np.maximum(_values(spec.output_tokens) - 1, 0)[::20]
            rates = _values(service.tokens_per_s)[::20]
            stream = np.quantile((lengths[:, None] / rates[None, :]).ravel(), _GRID)
            total = np.quantile((first[::20, None] + stream[None, ::20]).ravel(), _GRID)
            return np.asarray(total / endpoint.speedup)
        return _values(service.service_s) / endpoint.speedup

    @property
    def call_share(self) -> float:
        """At least this fraction of the requests needs a call of the endpoint: a cache answers no distinct prompt."""
        prompts = self.scenario.workload.prompts
        if self.scenario.deployment.cache.enabled and isinstance(prompts, ZipfPrompts):
            return 1 - prompts.share
        return 1.0

    @property
    def saturation(self) -> tuple[float, str]:
        """The rate in requests/s that nothing can exceed for long, and what bounds it; infinite where nothing is known."""
        share = self.call_share
        if share == 0:
            return math.inf, "the cache"
        bounds = [(math.inf, "nothing")]
        if self.times_s is not None and (mean_s := float(self.times_s.mean())) > 0:
            bounds.append((self.servers / mean_s, "the instances' slots"))
        bounds += self._endpoint_bounds()
        rate, what = min(bounds, key=lambda bound: bound[0])
        return rate / share, what

    def _endpoint_bounds(self) -> list[tuple[float, str]]:
        endpoint, spec = self.scenario.endpoint, self.scenario.workload
        if endpoint.lines or len(spec.models) > 1:
            return []  # limits are per model class: a bound of the whole would need the mix
        speedup = endpoint.speedup
        bounds = [
            (limit * speedup / 60 / cost, f"the endpoint's {name}")
            for name, limit, cost in _limits(
                endpoint.limits, _mean(spec.input_tokens), _mean(spec.output_tokens)
            )
        ]
        service = endpoint.service
        if isinstance(service, SelfHostedService):
            batch = min(service.max_num_seqs, self.servers)
            step_s = service.decode_base_s / batch + service.decode_per_sequence_s
            each_s = _mean(spec.output_tokens) * step_s
            each_s += _mean(spec.input_tokens) / service.prefill_tokens_per_s
            bounds.append((speedup / each_s, "the engine's batches"))
        return bounds

    @property
    def offered_per_s(self) -> float | None:
        """The rate of a load that stays the same; None of others."""
        arrivals = self.scenario.workload.arrivals
        if isinstance(arrivals, (ConstantArrivals, PoissonArrivals, GammaArrivals, BatchArrivals)):
            return arrivals.rate_per_s
        return None

    @property
    def hopeless(self) -> str | None:
        """Why the promises cannot be kept whatever happens: so far beyond capacity that the delay at the end of the
        horizon, or the losses of full queues, are twice what is allowed. None where that is not certain."""
        rate = self.offered_per_s
        saturation, what = self.saturation
        if rate is None or rate <= saturation:
            return None
        horizon_s, deployment = self.scenario.horizon_s, self.scenario.deployment
        excess = 1 - saturation / rate
        room = self.servers * (
            1 + deployment.instances.queue_limit / deployment.instances.concurrency
        )
        text = f"{what} serve at most {saturation:.4g} requests/s, asked are {rate:.4g}"
        if rate * excess * horizon_s > room:  # queues overflow
            lost = excess - room / (rate * horizon_s)
            allowed = [slo.limit for slo in self.scenario.slos if slo.limit is not None]
            return text if allowed and lost > 2 * min(allowed) else None
        delays_s = [
            (rate / saturation - 1) * slo.quantile * horizon_s / slo.limit_s
            for slo in self.scenario.slos
            if slo.metric in ("latency", "ttft") and slo.quantile and slo.limit_s
        ]
        return text if delays_s and max(delays_s) > 2 else None

    @property
    def hopeful(self) -> bool:
        """Whether M/G/c would keep every promise at the offered rate, as far as it can tell."""
        rate = self.offered_per_s
        if rate is None:
            return True
        return rate < self.saturation[0] and all(
            self.predicts(rate, slo) is not False for slo in self.scenario.slos
        )

    def predicts(self, rate_per_s: float, slo: SLO) -> bool | None:
        """Whether M/G/c would keep the promise at that rate; None where it cannot tell.

        The wait is exponential with probability Erlang C and the mean of Lee and Longton 1959, (1 + cv^2)/2 that of M/M/c.
        """
        times_s = self.times_s
        if (
            slo.metric != "latency"
            or slo.quantile is None
            or slo.limit_s is None
            or times_s is None
        ):
            return None
        mean_s = float(times_s.mean())
        calls_per_s = rate_per_s * self.call_share
        load = calls_per_s * mean_s / self.servers
        if load >= 1:
            return False
        if mean_s == 0:
            return True
        cv2 = float(times_s.var()) / mean_s**2
        waits = _erlang_c(calls_per_s * mean_s, self.servers)
        rate_of_wait = (self.servers / mean_s - calls_per_s) / ((1 + cv2) / 2)
        grid = np.linspace(0, slo.limit_s, 400)
        # P(time + wait <= limit): the time at or below each point, and the wait within what is left.
        at_most = np.searchsorted(times_s, grid, side="right") / len(times_s)
        within = 1 - waits * np.exp(-rate_of_wait * (slo.limit_s - grid))
        kept = float((np.diff(at_most, prepend=0.0) * within).sum())
        return kept >= slo.quantile

    def guess_rate(self) -> float:
        """A rate at which the promises may just be kept."""
        saturation, _ = self.saturation
        if math.isinf(saturation):
            return math.inf
        low, high = 0.0, saturation
        for _ in range(30):
            middle = (low + high) / 2
            if any(self.predicts(middle, slo) is False for slo in self.scenario.slos):
                high = middle
            else:
                low = middle
        return min(low, 0.95 * saturation)


def _values(distribution: AnyDistribution) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return distribution.quantiles(_GRID)


def _mean(distribution: AnyDistribution) -> float:
    """Of lengths: they are at least one token."""
    return max(1.0, distribution.mean())


def _limits(spec: LimitsSpec, inputs: float, outputs: float) -> list[tuple[str, float, float]]:
    found = [
        ("requests per minute", spec.requests_per_min, 1.0),
        ("input tokens per minute", spec.input_tokens_per_min, inputs),
        ("output tokens per minute", spec.output_tokens_per_min, outputs),
    ]
    return [(name, limit, cost) for name, limit, cost in found if limit is not None]


def _erlang_c(offered: float, servers: int) -> float:
    """By the recursion of Erlang B (Jagerman 1974)."""
    blocking = 1.0
    for c in range(1, servers + 1):
        blocking = offered * blocking / (c + offered * blocking)
    return servers * blocking / (servers - offered * (1 - blocking))
