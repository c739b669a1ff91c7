"""What can limit the system: where it shows in a request's delay, at which stations, and what one can try about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

__all__ = ["FAILING", "REFUSED", "RESOURCES", "Resource", "failing_resource"]


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that can limit: the parts of the delay it causes, the stations that belong to it, what to try."""

    name: str
    parts: tuple[str, ...]
    kinds: tuple[str, ...]
    action: str


RESOURCES: Final[Mapping[str, Resource]] = {
    "slots": Resource(
        "the instances' concurrency slots",
        ("instance_wait_s",),
        ("slots",),
        "raise `instances.concurrency`, or have more instances (`instances.initial`; with an autoscaler, sooner: "
        "`autoscaler.min_instances`, a lower target)",
    ),
    "fleet": Resource(
        "instances ready to take a request",
        ("balance_s",),
        (),
        "raise `autoscaler.min_instances` or shorten the boot time",
    ),
    "admission": Resource(
        "the gateway's admission",
        ("admission_s",),
        (),
        "raise `gateway.max_in_flight`, or add capacity behind it",
    ),
    "queue": Resource(
        "the task queue's workers",
        ("queue_wait_s",),
        ("queue", "broker"),
        "add workers for the queue",
    ),
    "cache": Resource(
        "the cache (look-ups and shared computations)",
        ("cache_s",),
        ("cache",),
        "look at the waits for shared computations; warm the cache or lengthen `cache.ttl_s`",
    ),
    "database": Resource(
        "the database",
        ("database_s",),
        ("pool", "database"),
        "enlarge the connection pool or batch the ledger",
    ),
    "refusals": Resource(
        "the endpoint's limits (retries and failed attempts)",
        ("retry_wait_s", "failed_attempts_s"),
        (),
        "have the endpoint's rate limit raised, or admit less than it allows; more instances would make it worse",
    ),
    "endpoint": Resource(
        "the LLM endpoint's own time",
        ("endpoint_s",),
        ("endpoint",),
        "shorter prompts and answers, a faster model or more cache hits",
    ),
    "path": Resource(
        "the way between instance and endpoint",
        ("upstream_path_s",),
        ("connections",),
        "look at the connection pool and the CPU of the instance processes",
    ),
    "cpu": Resource(
        "CPU of the event loops, and the network",
        ("other_s",),
        ("cpu",),
        "profile the busiest process; add gateway or instance processes, or cores",
    ),
    # In place of `cpu` where nothing inside the system was measured: the rest that no hop explains is then all of it.
    "target": Resource(
        "the target, whose inside was not seen",
        ("other_s",),
        (),
        "look at the target's own measures, or run the scenario against its own system (no `--target`)",
    ),
    # Never by delay: requests that are wrong in themselves.
    "requests": Resource(
        "the requests themselves",
        (),
        (),
        "are they what is taken there: model, `max_tokens`, length of the prompt?",
    ),
    "generator": Resource(
        "the load generator",
        ("lag_s",),
        (),
        "the test is late, not the system: give the swarm more workers or a lower rate, and repeat the run",
    ),
}

# What an outcome accuses by itself; a time-out or an unfinished request accuses whatever slow requests wait for.
FAILING: Final[Mapping[str, str]] = {
    "rejected": "slots",
    "rate_limited": "refusals",
    "overloaded": "refusals",
    "server_error": "refusals",
    "connection_error": "path",
    "stream_broken": "path",
    "client_error": "requests",
}
# What a status of the class 4xx asks first; 0: the status was not recorded. Any other: the requests' own question.
REFUSED: Final[Mapping[int, str]] = {
    0: "is the API key right?",
    401: "is the API key right?",
    403: "is the API key right, and may it use the scenario's models?",
    404: "is the address right, and are the scenario's models known there?",
}


def failing_resource(outcome: str, *, inside_seen: bool) -> str | None:
    """The key of what an outcome accuses; None for one that accuses whatever slow requests wait for."""
    if inside_seen or outcome in ("rate_limited", "overloaded", "client_error"):
        return FAILING.get(outcome)
    return "target"
