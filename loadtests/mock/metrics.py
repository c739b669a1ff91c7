"""`GET /metrics`: the endpoint's counters in Prometheus' text format, and whether the mock itself keeps up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psutil
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from loadtests.mock.validity import Verdict
from simulation.models.llm_endpoint import LLMEndpoint

__all__ = ["MockMetrics"]


class MockMetrics:
    """Reads the endpoint's statistics when it is asked."""

    def __init__(
        self,
        endpoint: LLMEndpoint,
        lag_s: Callable[[], float],
        verdicts: Callable[[], dict[str, Verdict]],
    ) -> None:
        self._endpoint = endpoint
        self._lag_s = lag_s
        self._verdicts = verdicts
        self._process = psutil.Process()
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def health(self) -> dict[str, Any]:
        """What `/healthz` says: alive, and whether a run against this mock is valid so far."""
        verdicts = self._verdicts()
        return {
            "status": "ok",
            "valid": all(verdict.valid for verdict in verdicts.values()),
            "reason": "; ".join(v.reason for v in verdicts.values() if v.reason),
            **verdicts,
        }

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client."""
        s = self._endpoint.statistics()
        ended = CounterMetricFamily(
            "mock_requests", "Attempts that have ended, by outcome.", labels=["outcome"]
        )
        for outcome in ("completed", "rate_limited", "overloaded", "failed", "cancelled"):
            ended.add_metric([outcome], getattr(s, outcome))
        yield ended
        yield GaugeMetricFamily("mock_in_flight", "Attempts in progress.", s.in_flight)
        yield CounterMetricFamily("mock_input_tokens", "Billed input tokens.", s.input_tokens)
        yield CounterMetricFamily("mock_output_tokens", "Billed output tokens.", s.output_tokens)
        yield CounterMetricFamily("mock_cost_usd", "What the answers would have cost.", s.cost_usd)
        late = CounterMetricFamily(
            "mock_late", "Planned instants met more than 10 ms late.", labels=["what"]
        )
        for what, verdict in self._verdicts().items():
            late.add_metric([what], verdict.late)
        yield late
        times = self._process.cpu_times()
        yield CounterMetricFamily(
            "mock_cpu_seconds", "CPU time of the process.", times.user + times.system
        )
        yield GaugeMetricFamily(
            "mock_loop_lag_seconds",
            "How late the event loop was at most, lately.",
            self._lag_s(),
        )
