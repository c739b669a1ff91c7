"""Prometheus metrics of one process, in a registry of its own, with bounded labels and OpenTelemetry's names."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["ServiceMetrics"]

# Seconds; the OpenTelemetry advice for gen_ai.client.operation.duration.
_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


class ServiceMetrics:
    """Requests by outcome, their duration, and gauges that are read when they are asked for."""

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]] | None = None) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "twinload_requests", "Requests by outcome.", ["outcome"], registry=self._registry
        )
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from the first byte of a request to the last of its answer.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        for name, (text, read) in (gauges or {}).items():
            Gauge(name, text, registry=self._registry).set_function(read)

    def observe(self, outcome: str, duration_s: float) -> None:
        self._requests.labels(outcome).inc()
        self._duration.observe(duration_s)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
