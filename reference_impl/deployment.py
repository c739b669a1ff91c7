"""DeploymentSpec: what exists. One description configures the live stack and the virtual world alike.

Seconds, counts and fractions; every field has a bound, and an unknown field is an error that names it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "AutoscalerSpec",
    "BalancerSpec",
    "CacheSpec",
    "DatabaseSpec",
    "DeploymentSpec",
    "GatewaySpec",
    "InstanceSpec",
    "QueueSpec",
    "RetrySpec",
    "SemanticCacheSpec",
]

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Spec(BaseModel):
    """Base of every part: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class GatewaySpec(Spec):
    """The front door: at most `max_in_flight` requests are held, the next is rejected (529).

    `max_failovers`: other instances tried when one refuses or drops a connection before an answer began.
    """

    max_in_flight: Count = 10_000
    request_timeout_s: PositiveSeconds = 600.0
    max_failovers: Annotated[int, Field(ge=0, le=10)] = 2


class RetrySpec(Spec):
    """Attempts of the processor. Waits are `backoff_s * 2^n`, at most `backoff_max_s`, with full jitter; `retry-after` wins.

    `budget_fraction`: retries allowed as a fraction of requests (Finagle's default is 0.2), with `budget_reserve_per_s`
    beside it. A retry beyond the budget is not made.
    """

    max_attempts: Annotated[int, Field(ge=1, le=20)] = 3
    backoff_s: PositiveSeconds = 0.5
    backoff_max_s: PositiveSeconds = 8.0
    attempt_timeout_s: PositiveSeconds = 120.0
    budget_fraction: Fraction = 0.2
    budget_reserve_per_s: Annotated[float, Field(ge=0)] = 1.0


class InstanceSpec(Spec):
    """One worker: `concurrency` calls at once, at most `queue_limit` waiting for a slot, the next is rejected.

    `boot_s`: time from the order to readiness (exponential with that mean where `boot_distribution` says so).
    """

    initial: Count = 2
    concurrency: Count = 16
    queue_limit: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    boot_s: Seconds = 2.0
    boot_distribution: Literal["constant", "exponential"] = "constant"
    drain_s: Seconds = 30.0
    heartbeat_s: PositiveSeconds = 1.0


class BalancerSpec(Spec):
    """Which instance takes a call. `choices`: of how many drawn at random `power_of_two` takes the least loaded."""

    policy: Literal["least_loaded", "round_robin", "weighted", "power_of_two"] = "least_loaded"
    choices: Annotated[int, Field(ge=1, le=8)] = 2


class AutoscalerSpec(Spec):
    """The control loop reads metrics every `interval_s` and asks the policy for a change.

    `cpu`: the lesson's thresholds on CPU and errors. `concurrency`: `ceil(in flight / target per instance)` with a
    tolerance, scale-down after `down_stabilization_s` (the highest recommendation of that window, as Kubernetes does).
    """

    enabled: bool = True
    policy: Literal["cpu", "concurrency"] = "concurrency"
    min_instances: Count = 1
    max_instances: Count = 10
    interval_s: PositiveSeconds = 5.0
    cpu_threshold: Fraction = 0.8
    target_in_flight: Annotated[float, Field(gt=0)] = 10.0
    tolerance: Fraction = 0.1
    down_stabilization_s: Seconds = 60.0

    @model_validator(mode="after")
    def _bounds_in_order(self) -> AutoscalerSpec:
        if self.min_instances > self.max_instances:
            raise ValueError(
                f"min_instances ({self.min_instances}) is greater than max_instances ({self.max_instances})"
            )
        return self


class SemanticCacheSpec(Spec):
    """Answers to prompts that mean the same (docs/caches.md). Off unless asked for, because it can be wrong.

    `threshold`: cosine from which two prompts may share an answer. At most `max_scopes` scopes (tenant, model, parameters,
    conversation) of `max_prompts` prompts are held; what other gateways add is learnt every `reload_s`.
    """

    enabled: bool = False
    threshold: Fraction = 0.85
    max_scopes: Count = 1000
    max_prompts: Count = 10_000
    reload_s: PositiveSeconds = 60.0


class CacheSpec(Spec):
    """The exact cache in the gateway's memory; `ttl_s: 0` stores nothing. `max_entries` bounds it beside `max_bytes`.

    `shared: redis` adds a level that gateways share (which server is told to the process, never here). Memory then serves a
    value for `l1_ttl_s` before it asks again (0: always), and a look-up waits at most `timeout_s` for the server.
    """

    enabled: bool = True
    ttl_s: Seconds = 3600.0
    max_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024
    max_entries: Count | None = None
    shared: Literal["none", "redis"] = "none"
    l1_ttl_s: Seconds = 60.0
    timeout_s: PositiveSeconds = 0.05
    semantic: SemanticCacheSpec = SemanticCacheSpec()


class DatabaseSpec(Spec):
    """The ledger: a row per request, and budgets. `none` keeps neither.

    `min_size`, `max_size`: connections of the gateway's pool (`min_size` is at most `max_size`). `acquire_timeout_s`: the wait for one; `statement_timeout_s`:
    after which a statement is cancelled.
    `flush_s`: what a killed gateway may lose of the ledger. `batch_rows`: rows written at once. `max_rows`, `max_bytes`:
    what is kept in memory; more goes to the spill file.
    `budgets_usd`: limits by key (tenant), set at the start; None lifts one. Those of keys that are not named stay as they are,
    for gateways with other configurations may share the database. A gateway takes money for `budget_requests` requests at once
    while there is plenty (1: each asks the database). A reservation waits at most `budget_wait_s`; where the database does
    not answer, `budget_outage` says whether the request goes on (its cost is booked later) or is refused. `hold_s`: after
    which what a killed gateway had reserved is free again.
    """

    ledger: Literal["none", "memory", "sqlite", "postgres"] = "none"
    min_size: Annotated[int, Field(ge=0, le=10_000)] = 10
    max_size: Annotated[int, Field(ge=1, le=10_000)] = 20
    acquire_timeout_s: PositiveSeconds = 5.0
    statement_timeout_s: PositiveSeconds = 10.0
    behind_pgbouncer: bool = False
    flush_s: PositiveSeconds = 1.0
    batch_rows: Count = 10_000
    max_rows: Count = 50_000
    max_bytes: Annotated[int, Field(ge=4096)] = 32 * 1024 * 1024
    budgets_usd: dict[str, Annotated[float, Field(ge=0, le=1e9)] | None] = {}
    budget_requests: Count = 50
    budget_wait_s: PositiveSeconds = 1.0
    budget_outage: Literal["allow", "refuse"] = "allow"
    hold_s: PositiveSeconds = 60.0


class QueueSpec(Spec):
    """Message batches through a queue (`/v1/messages/batches`). `none` offers none; which broker's address, is told to processes.

    `name`: of the queue. Each instance holds at most `concurrency` requests of batches at once, beside the calls that it is
    sent; `lease_s`: after which what a dead one held goes to another. An answer may take `timeout_s`; one that fails is tried
    `max_retries` times again, after waits as `retry` says (its `max_attempts` is the processor's business, not the queue's).
    """

    broker: Literal["none", "rabbitmq", "redis", "kafka"] = "none"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "batches"
    concurrency: Count = 8
    lease_s: PositiveSeconds = 30.0
    timeout_s: PositiveSeconds = 600.0
    max_retries: Annotated[int, Field(ge=0, le=1000)] = 20
    retry: RetrySpec = RetrySpec(backoff_s=1.0, backoff_max_s=60.0)


class DeploymentSpec(Spec):
    """The whole system under study. `cores`: CPU cores that its processes share."""

    gateway: GatewaySpec = GatewaySpec()
    retry: RetrySpec = RetrySpec()
    instances: InstanceSpec = InstanceSpec()
    balancer: BalancerSpec = BalancerSpec()
    autoscaler: AutoscalerSpec = AutoscalerSpec()
    cache: CacheSpec = CacheSpec()
    database: DatabaseSpec = DatabaseSpec()
    queue: QueueSpec = QueueSpec()
    cores: Count = 2

    @model_validator(mode="after")
    def _batches_are_kept_somewhere(self) -> DeploymentSpec:
        if self.queue.broker != "none" and self.database.ledger not in ("sqlite", "postgres"):
            raise ValueError(
                f"queue.broker {self.queue.broker} needs a ledger that gateway and instances share, to keep batches in: set "
                "database.ledger to sqlite or postgres"
            )
        return self
