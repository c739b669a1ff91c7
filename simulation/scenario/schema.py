"""Scenario: one description of a system, its load, its surroundings and its promises, for both worlds."""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePath
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from reference_impl.compute import Step
from reference_impl.deployment import DeploymentSpec, Spec
from simulation.scenario.caches import CacheServerSpec, SemanticAccuracy
from simulation.scenario.database import DatabaseDemand
from simulation.scenario.distributions import Constant, Distribution
from simulation.scenario.endpoint import EndpointProfile, load_profile
from simulation.scenario.faults import Fault, FaultWindow, endpoint_faults, fault_windows
from simulation.scenario.workload_spec import WorkloadSpec

__all__ = [
    "SLO",
    "CpuSpec",
    "Demand",
    "NetworkSpec",
    "ProcessCpu",
    "ProcessKind",
    "Scenario",
    "StationSpec",
    "scenario_sha256",
]

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
ProcessKind = Literal["gateway", "instance", "endpoint", "client"]


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


class Demand(Spec):
    """CPU seconds of one step: `base_s + per_kb_s` for every KB (1,024 bytes) of its payload."""

    base_s: Seconds = 0.0
    per_kb_s: Seconds = 0.0


class ProcessCpu(Spec):
    """The demand of each step (`reference_impl.compute.Step`) in one kind of process; what is not named costs nothing."""

    parse: Demand = Demand()
    lookup: Demand = Demand()
    forward: Demand = Demand()
    chunk: Demand = Demand()
    encode: Demand = Demand()
    embed: Demand = Demand()
    client: Demand = Demand()


class CpuSpec(Spec):
    """CPU demand by kind of process and step; `cpu: 0` switches all of it off.

    Defaults are measured on this project's own processes (Python 3.11, two cores of a small virtual machine, November
    2026), to be replaced by a calibration on yours: at 160 requests/s a gateway used 0.61 ms a request and an instance
    0.63 ms, both 18 µs more for each streamed event. How that is split over the steps follows measurements of the parts: an
    aiohttp call 0.2 to 0.3 ms, a Starlette route and its parsing 0.15 to 0.2 ms. The term per KB is JSON decoding and
    hashing at about 300 MB/s. `embed` is the shipped encoder of prompts, on a thread beside the loop: 7 ms for 40 characters,
    67 ms for 800. Clients and endpoint are free: they are not under study, and often run on machines of
    their own.
    """

    gateway: ProcessCpu = ProcessCpu(
        parse=Demand(base_s=190e-6, per_kb_s=3e-6),
        lookup=Demand(base_s=30e-6, per_kb_s=2e-6),
        forward=Demand(base_s=280e-6, per_kb_s=1e-6),
        chunk=Demand(base_s=18e-6),
        encode=Demand(base_s=100e-6, per_kb_s=1e-6),
        embed=Demand(base_s=5e-3, per_kb_s=68e-3),
    )
    instance: ProcessCpu = ProcessCpu(
        parse=Demand(base_s=220e-6, per_kb_s=3e-6),
        forward=Demand(base_s=300e-6, per_kb_s=1e-6),
        chunk=Demand(base_s=18e-6),
        encode=Demand(base_s=100e-6, per_kb_s=1e-6),
    )
    endpoint: ProcessCpu = ProcessCpu()
    client: ProcessCpu = ProcessCpu()

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        if _is_zero(data):
            return {kind: {} for kind in get_args(ProcessKind)}
        return data

    def demand(self, process: ProcessKind, step: Step) -> Demand:
        """The demand of `step` in a process of that kind."""
        found: Demand = getattr(getattr(self, process), step)
        return found


class NetworkSpec(Spec):
    """One-way latency of each link; `network: 0` switches all of them off. Defaults: a loopback interface, 50 µs."""

    client_gateway_s: Distribution = Constant(value=50e-6)
    gateway_instance_s: Distribution = Constant(value=50e-6)
    instance_endpoint_s: Distribution = Constant(value=50e-6)

    @model_validator(mode="before")
    @classmethod
    def _off(cls, data: Any) -> Any:
        return dict.fromkeys(cls.model_fields, 0) if _is_zero(data) else data


class SLO(Spec):
    """A promise.

    `latency`, `ttft` (seconds from the intended instant) and `tpot` (seconds per output token after the first): the
    `quantile` of successful requests is at most `limit_s`. `error_rate`: the fraction of requests that do not end `ok`
    is at most `limit`. `batch`: every message batch has its last result within `limit_s` of the instant at which it was due.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    metric: Literal["ttft", "latency", "tpot", "error_rate", "batch"]
    quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    limit_s: PositiveSeconds | None = None
    limit: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _fields_of_the_metric(self) -> SLO:
        if self.metric == "error_rate":
            if self.limit is None or self.quantile is not None or self.limit_s is not None:
                raise ValueError("an error_rate takes limit (0 to 1), and no quantile or limit_s")
        elif self.metric == "batch":
            if self.limit_s is None or self.quantile is not None or self.limit is not None:
                raise ValueError("a batch takes limit_s, and no quantile or limit")
        elif self.quantile is None or self.limit_s is None or self.limit is not None:
            raise ValueError(f"a {self.metric} takes quantile and limit_s, and no limit")
        return self


class StationSpec(Spec):
    """An extra station that every request passes on its way to the gateway: first come first served at `servers`, or a mere delay.

    `servers: null` delays without a queue. The service time is drawn per request. Virtual world only: it stands for
    something of a textbook system, or of a user's own, that the deployment does not have.
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    servers: Annotated[int, Field(ge=1, le=1_000_000)] | None = 1
    service_s: Distribution


def _named_profile(value: Any) -> Any:
    """`endpoint: NAME`, or `endpoint: {profile: NAME, field: value, ...}` with some of its fields replaced."""
    if isinstance(value, str):
        return load_profile(value)
    if isinstance(value, dict) and isinstance(value.get("profile"), str):
        changes = {name: part for name, part in value.items() if name != "profile"}
        return {**load_profile(value["profile"]).model_dump(), **changes}
    return value


# What a deployment without the server would have to say.
_OUTAGE_NEEDS: Final = {
    "redis_outage": "there is no Redis to be away; set deployment.cache.shared to redis",
    "database_outage": "there is no database to be away; set deployment.database.ledger to postgres or sqlite",
    "broker_outage": "there is no broker to be away; set deployment.queue.broker to rabbitmq, redis or kafka",
}


class Scenario(Spec):
    """Everything that a run needs; immutable.

    Attributes:
        name, description: for people. A file without a name is named after its stem.
        deployment: what exists.
        workload: what is asked of it.
        endpoint: how the LLM endpoint behaves: a profile's name, `{profile: NAME, ...}` with some fields replaced, or
            the profile itself.
        stations: extra stations that every request passes on its way to the gateway, in this order.
        network, cpu, database, cache_server: what the surroundings cost in virtual time.
        semantics: what a cache by meaning finds in virtual time.
        faults: what goes wrong. slos: what was promised.
        horizon_s: no request is sent from here on. drain_s: how long the run then waits for answers.
        sample_interval_s: stations are sampled this often.
        seed: of every random draw.
        stream_detail: a virtual stream is two events (`ends`) or all its chunks (`chunks`).
    """

    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: str = ""
    deployment: DeploymentSpec = DeploymentSpec()
    workload: WorkloadSpec
    endpoint: Annotated[EndpointProfile, BeforeValidator(_named_profile)] = Field(
        default_factory=lambda: load_profile("sonnet-class")
    )
    stations: tuple[StationSpec, ...] = ()
    network: NetworkSpec = NetworkSpec()
    cpu: CpuSpec = CpuSpec()
    database: DatabaseDemand = DatabaseDemand()
    cache_server: CacheServerSpec = CacheServerSpec()
    semantics: SemanticAccuracy = SemanticAccuracy()
    faults: tuple[Fault, ...] = ()
    slos: tuple[SLO, ...] = ()
    horizon_s: PositiveSeconds
    drain_s: Seconds = 30.0
    sample_interval_s: PositiveSeconds = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    stream_detail: Literal["ends", "chunks"] = "ends"

    @model_validator(mode="after")
    def _unique_names(self) -> Scenario:
        for field, parts in (("slos", self.slos), ("stations", self.stations)):
            names = [part.name for part in parts]
            if len(set(names)) != len(names):
                raise ValueError(f"{field}: a name occurs twice in {names}")
        return self

    @model_validator(mode="after")
    def _batches_have_a_queue(self) -> Scenario:
        if self.workload.batches and self.deployment.queue.broker == "none":
            raise ValueError(
                "workload.batches: nothing here takes batches; set deployment.queue.broker to rabbitmq, redis or kafka, and "
                "deployment.database.ledger to sqlite or postgres"
            )
        return self

    @model_validator(mode="after")
    def _faults_have_what_they_befall(self) -> Scenario:
        """Better no run than one that leaves a fault out."""
        deployment = self.deployment
        there = {
            "redis_outage": deployment.cache.enabled and deployment.cache.shared != "none",
            "database_outage": deployment.database.ledger in ("postgres", "sqlite"),
            "broker_outage": deployment.queue.broker != "none",
        }
        for index, fault in enumerate(self.faults):
            if not there.get(fault.kind, True):
                raise ValueError(f"faults.{index}: {_OUTAGE_NEEDS[fault.kind]}")
        return self

    def fault_windows(self) -> tuple[FaultWindow, ...]:
        """Every occurrence of a fault before the horizon, in order of time; fixed by the seed."""
        return fault_windows(self.faults, self.seed, self.horizon_s)

    def endpoint_under_faults(self) -> EndpointProfile:
        """The profile with this scenario's faults at the endpoint: what both worlds' endpoints are to play."""
        planned = endpoint_faults(self.fault_windows(), self.endpoint.speedup)
        if not planned:
            return self.endpoint
        return self.endpoint.model_copy(update={"faults": (*self.endpoint.faults, *planned)})


def scenario_sha256(scenario: Scenario) -> str:
    """Hex sha256 of the canonical JSON: sorted keys, every default written out.

    A trace enters by its file name, not by where it lies on this machine; the workload's own sha256 covers its content.
    Batches enter where there are any, so that a scenario without them has the sha256 that it had before they existed.
    """
    document = scenario.model_dump(mode="json")
    if not document["workload"]["batches"]:
        del document["workload"]["batches"]
    arrivals = document["workload"]["arrivals"]
    if arrivals["kind"] == "trace":
        arrivals["path"] = PurePath(arrivals["path"]).name
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
