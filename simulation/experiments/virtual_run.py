"""One virtual run, from scenario to run folder; and the replay of a live run at the instants that it really sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from reference_impl.telemetry import SystemEvent
from reference_impl.telemetry.run_folder import RunWriter, read_events, read_requests
from simulation.scenario.errors import ScenarioError
from simulation.scenario.manifest import WORKLOAD_FILE, Manifest, check_unused
from simulation.scenario.schema import Scenario, scenario_sha256
from simulation.scenario.workload import CompiledWorkload
from simulation.world import SimulationSummary, simulate

__all__ = ["Provenance", "Replay", "replay_of", "run_virtual"]


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What only the edge of the program knows of a run; see `Manifest`."""

    commit: str = ""
    versions: dict[str, str] = {}
    machine: dict[str, str | int | float] = {}
    started_at: str = ""


def run_virtual(
    scenario: Scenario,
    workload: CompiledWorkload,
    out: Path,
    provenance: Provenance,
    *,
    lead_s: float = 0.0,
    on_progress: Callable[[float, int], None] | None = None,
    max_events: int | None = None,
    wall_clock_limit_s: float | None = None,
    wall_clock: Callable[[], float] | None = None,
) -> SimulationSummary:
    """Simulate into the run folder `out`. A run that is cut short keeps what was recorded, marked incomplete.

    Raises FileExistsError if `out` holds a run already, and what `simulate` raises.
    """
    check_unused(out)
    with RunWriter(out) as run:
        manifest = Manifest(
            world="virtual",
            scenario=scenario.model_dump(mode="json"),
            scenario_sha256=scenario_sha256(scenario),
            workload_sha256=workload.sha256,
            seed=scenario.seed,
            commit=provenance.commit,
            versions=provenance.versions,
            machine=provenance.machine,
            started_at=provenance.started_at,
        )
        manifest.write(out)
        workload.save(out / WORKLOAD_FILE)
        summary = simulate(
            scenario,
            workload,
            run,
            lead_s=lead_s,
            on_progress=on_progress,
            max_events=max_events,
            wall_clock_limit_s=wall_clock_limit_s,
            wall_clock=wall_clock,
        )
    msgspec.structs.replace(manifest, complete=True).write(out)
    return summary


class Replay(NamedTuple):
    """What a live run was asked, and when: see `simulate` for `lead_s`."""

    workload: CompiledWorkload
    lead_s: float


def replay_of(live: Path) -> Replay:
    """The workload of the live run in folder `live`, with its measured `sent_s` as the arrivals.

    So both systems are asked the same at the same instants, their control loops tick at the same instants, and the
    injector's lag is no part of the comparison. Raises ScenarioError where the folder is not a run that can be replayed.
    """
    manifest = Manifest.read(live)
    try:
        requests = read_requests(live, ["request_id", "sent_s"])
        events = read_events(live)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ScenarioError(f"{live}: not a run that can be replayed: {error}") from None
    workload = CompiledWorkload.load(live / WORKLOAD_FILE)
    sent_s = np.full(len(workload), np.nan)
    ids = requests["request_id"].to_numpy()
    known = (ids >= 0) & (ids < len(workload))
    sent_s[ids[known]] = requests["sent_s"].to_numpy()[known]
    # Submitted at once: the first request of a batch tells when.
    submitted_s = dict(zip(ids.tolist(), requests["sent_s"].tolist(), strict=True))
    batches_sent_s = {
        batch.number: submitted_s[batch.first_id]
        for batch in workload.batches
        if batch.first_id in submitted_s
    }
    return Replay(workload.replaying(sent_s, batches_sent_s), _lead_s(events, manifest))


def _lead_s(events: Sequence[SystemEvent], manifest: Manifest) -> float:
    """From the instant at which the last of the initial instances was ready to the instant 0 of the load."""
    deployment = manifest.scenario.get("deployment")
    instances = deployment.get("instances") if isinstance(deployment, dict) else None
    initial = instances.get("initial") if isinstance(instances, dict) else None
    ready_s = [
        event.t_s
        for event in events
        if event.kind == "instance" and event.detail.get("state") == "ready"
    ]
    if not isinstance(initial, int) or len(ready_s) < initial:
        return 0.0
    return max(0.0, -ready_s[initial - 1])
