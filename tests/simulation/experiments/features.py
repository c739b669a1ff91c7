"""Scenarios that together use every feature of a run: `python -m tests.simulation.experiments.features` prints digests."""

from __future__ import annotations

import json
import sys

from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario
from tests.simulation.runs import play

__all__ = ["FEATURES", "digest", "scenario"]

FEATURES: dict[str, tuple[str, dict[str, object]]] = {
    "every component": ("chat", {"horizon_s": 15}),
    "sessions and the provider's prompt cache": ("agents", {"horizon_s": 60}),
    "bursts, rate limits, retries": ("burst", {"horizon_s": 60, "seed": 3}),
    "closed users": ("workers", {"horizon_s": 40}),
    "faults of endpoint and links": (
        "demo",
        {
            "horizon_s": 20,
            "faults": [
                {"kind": "endpoint_529", "at_s": 4, "duration_s": 4, "probability": 0.5},
                {"kind": "endpoint_stream_break", "at_s": 9, "duration_s": 4, "probability": 0.5},
                {"kind": "endpoint_slow", "rate_per_hour": 600, "duration_s": 2, "factor": 4},
                {
                    "kind": "link_latency",
                    "rate_per_hour": 900,
                    "duration_s": 1,
                    "link": "instance_endpoint",
                    "extra_s": 0.3,
                },
            ],
        },
    ),
    "impatient clients, two choices, exponential boots, chunks": (
        "demo",
        {
            "horizon_s": 20,
            "stream_detail": "chunks",
            "workload.patience_s": {"kind": "exponential", "mean": 0.4},
            "deployment.balancer": {"policy": "power_of_two", "choices": 3},
            "deployment.instances.boot_distribution": "exponential",
            "deployment.instances.initial": 3,
        },
    ),
    "a shared cache that goes away": (
        "demo",
        {
            "horizon_s": 20,
            "deployment.cache.shared": "redis",
            "deployment.cache.l1_ttl_s": 1,
            "faults": [{"kind": "redis_outage", "at_s": 5, "duration_s": 5, "outage": "hanging"}],
        },
    ),
    "a self-hosted engine": (
        "chat",
        {"horizon_s": 15, "endpoint": "vllm-h100", "workload.arrivals.rate_per_s": 10},
    ),
    "extra stations": (
        "mm1",
        {
            "horizon_s": 500,
            "workload.arrivals": {
                "kind": "closed",
                "users": 8,
                "think_s": {"kind": "exponential", "mean": 2},
            },
            "stations": [
                {"name": "desk", "servers": 1, "service_s": {"kind": "exponential", "mean": 0.3}}
            ],
        },
    ),
}


def scenario(feature: str) -> Scenario:
    return load_scenario(*FEATURES[feature])


def digest(feature: str) -> str:
    """sha256 of every record of the run."""
    return play(scenario(feature)).sha256()


if __name__ == "__main__":
    sys.stdout.write(json.dumps({feature: digest(feature) for feature in FEATURES}))
