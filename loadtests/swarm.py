"""One live run from beginning to end: compile, start, inject, stop, join, judge.

Whatever happens on the way (a process dies, Ctrl-C, a time limit), what was recorded is joined and kept, and the manifest says
that the run is incomplete.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from loadtests.batch_rows import read_batch_rows
from loadtests.child_process import PACKAGES, ProcessFailed
from loadtests.collect import collect
from loadtests.keys import tenant_key
from loadtests.locust_processes import LocustProcesses, SwarmOptions
from loadtests.preflight import SwarmRefused, check, free_page_port
from loadtests.provenance import commit, machine, now_iso, versions
from loadtests.stack import Stack, StackError
from loadtests.status import Failed, Finished, Progress, Started
from loadtests.stored_batches import StoredBatches, stored_batches
from loadtests.validity import validity
from reference_impl.database.errors import DatabaseError
from simulation.scenario.manifest import RAW, WORKLOAD_FILE, Manifest
from simulation.scenario.schema import Scenario, scenario_sha256
from simulation.scenario.workload import CompiledWorkload

__all__ = ["SwarmError", "SwarmOptions", "SwarmProgress", "run_swarm"]

POLL_S: Final = 0.1
# Beyond horizon and drain: starting the injectors, and their last reports.
MARGIN_S: Final = 60.0
LAST_REPORTS_S: Final = 5.0


class SwarmError(RuntimeError):
    """A live run that had begun was cut short: one line for people.

    `folder` holds what was recorded, if anything; `is_bad_input`: the system refused its configuration.
    """

    def __init__(
        self, message: str, folder: Path | None = None, *, is_bad_input: bool = False
    ) -> None:
        super().__init__(message)
        self.folder = folder
        self.is_bad_input = is_bad_input


class SwarmProgress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run stands. `phase`: starting, running, finished (the page is still up), collecting."""

    phase: str
    t_s: float = 0.0
    horizon_s: float = 0.0
    requests: int = 0
    failures: int = 0
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    lag_p99_s: float | None = None
    web_url: str = ""


def run_swarm(
    scenario: Scenario,
    workload: CompiledWorkload,
    out: Path,
    *,
    target_url: str | None = None,
    api_key: str = "",
    options: SwarmOptions | None = None,
    workers: int = 0,
    web: bool = False,
    on_progress: Callable[[SwarmProgress], None] = lambda _progress: None,
) -> Path:
    """Replay `workload` against the live system and write the run folder `out`; returns it.

    Args:
        scenario: its deployment and endpoint are started on loopback, unless there is a target.
        target_url: an address that speaks the Messages API; `api_key` is sent there. Tags go to loopback targets only.
        options: how to inject; `workers` and `web` are shorthands for its fields of these names.
        on_progress: called about twice a second.

    Raises SwarmRefused before anything was begun, SwarmError after; on Ctrl-C, KeyboardInterrupt after everything was stopped and joined.
    """
    options = options or SwarmOptions()
    options = msgspec.structs.replace(
        options, workers=workers or options.workers, web=web or options.web
    )
    out = out.resolve()
    options = check(scenario, workload, out, options, target_url, api_key)
    web_port = free_page_port(options) if options.web else None
    try:
        (out / RAW).mkdir(parents=True, exist_ok=True)
        workload.save(out / WORKLOAD_FILE)
    except OSError as error:
        raise SwarmRefused(f"{out}: cannot be written: {error.strerror or error}") from None
    run = _Run(scenario, workload, out, options, on_progress, web_port)
    with run.recorded():
        run.inject(target_url, api_key)
    return out


class _Run:
    """The state of one run."""

    def __init__(
        self,
        scenario: Scenario,
        workload: CompiledWorkload,
        out: Path,
        options: SwarmOptions,
        on_progress: Callable[[SwarmProgress], None],
        web_port: int | None,
    ) -> None:
        self._scenario = scenario
        self._workload = workload
        self._out = out
        self._raw = out / RAW
        self._options = options
        self._web_port = web_port
        self._on_progress = on_progress
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._followed_until = math.nan
        self._manifest = Manifest(
            world="live",
            scenario=scenario.model_dump(mode="json"),
            scenario_sha256=scenario_sha256(scenario),
            workload_sha256=workload.sha256,
            seed=scenario.seed,
            commit=commit(PACKAGES),
            versions=versions(),
            machine=machine(),
            started_at=now_iso(),
        )

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Write the manifest before, and the tables and the manifest after, however the block ends."""
        self._manifest.write(self._out)
        failure: SwarmError | None = None
        try:
            yield
        except (StackError, ProcessFailed, SwarmError) as error:
            failure = SwarmError(
                f"{error}; what was recorded is in {self._out}",
                self._out,
                is_bad_input=error.is_bad_input,
            )
        except KeyboardInterrupt:
            # Stopping the page of a run that is over is no interruption.
            if self._finished is None:
                self._join("interrupted")
                raise
        self._join(str(failure) if failure else "")
        if failure is not None:
            raise failure

    def inject(self, target_url: str | None, api_key: str) -> None:
        """Start what is needed, follow the injectors to their end, stop everything."""
        scenario = self._scenario
        self._tell("starting")
        with ExitStack() as processes:
            stack = None
            if target_url is None:
                api_key = secrets.token_urlsafe(24)
                tenants = {
                    tenant_key(api_key, k): t for k, t in enumerate(self._workload.all_tenants)
                }
                stack = processes.enter_context(Stack(scenario, self._raw, tenants))
                target_url = stack.url
            locust = LocustProcesses(
                self._raw,
                self._out / WORKLOAD_FILE,
                target_url,
                self._options,
                horizon_s=scenario.horizon_s,
                drain_s=scenario.drain_s,
                seed=scenario.seed,
                api_key=api_key,
                key_per_tenant=stack is not None,
                web_port=self._web_port,
            )
            processes.enter_context(locust)
            try:
                self._follow(locust, stack)
            finally:
                # What is due later, while everything is being stopped, is not missed.
                self._followed_until = time.monotonic()

    def _follow(self, locust: LocustProcesses, stack: Stack | None) -> None:
        scenario, options = self._scenario, self._options
        limit_s = scenario.horizon_s + scenario.drain_s + options.start_delay_s + MARGIN_S
        deadline = time.monotonic() + limit_s
        while not self._is_over(locust):
            if stack is not None and self._finished is None:
                stack.check()
            for status in locust.poll():
                if isinstance(status, Failed):
                    raise SwarmError(status.message)
                if isinstance(status, Finished):
                    deadline = time.monotonic() + self._linger_s()
                self._note(status)
            if time.monotonic() > deadline:
                if self._finished is not None:
                    return
                raise SwarmError(f"the run did not end within {limit_s:g} s and was stopped")
            time.sleep(POLL_S)

    def _is_over(self, locust: LocustProcesses) -> bool:
        return self._finished is not None and locust.ended

    def _linger_s(self) -> float:
        """How long Locust may go on after the end of the run: its page stays, or its last reports come in."""
        if not self._options.web:
            return LAST_REPORTS_S
        linger_s = self._options.web_linger_s
        return math.inf if linger_s is None else linger_s

    def _note(self, status: Any) -> None:
        match status:
            case Started():
                self._started = status
            case Finished():
                self._finished = status
                self._tell("finished", t_s=status.t_s, requests=status.requests)
            case Progress():
                self._tell(
                    "running",
                    t_s=status.t_s,
                    requests=status.requests,
                    failures=status.failures,
                    latency_p50_s=status.latency_p50_s,
                    latency_p99_s=status.latency_p99_s,
                    lag_p99_s=status.lag_p99_s,
                )

    def _tell(self, phase: str, **figures: Any) -> None:
        url = f"http://127.0.0.1:{self._web_port}" if self._web_port is not None else ""
        horizon_s = self._scenario.horizon_s
        self._on_progress(SwarmProgress(phase=phase, horizon_s=horizon_s, web_url=url, **figures))

    def _join(self, failure: str) -> None:
        """Make the tables of what there is, and the final manifest."""
        self._tell("collecting")
        started = self._started
        if started is None:
            note = failure or "the run never started"
            msgspec.structs.replace(self._manifest, notes=(note,)).write(self._out)
            return
        until_s = min(self._scenario.horizon_s, self._followed_until - started.t0_monotonic_s)
        batches, unread = self._batches()
        collected = collect(
            self._raw,
            self._out,
            self._workload,
            t0_monotonic_s=started.t0_monotonic_s,
            t0_unix_s=started.t0_unix_s,
            until_s=until_s,
            end_s=min(
                self._scenario.horizon_s + self._scenario.drain_s,
                self._followed_until - started.t0_monotonic_s,
            ),
            batches=batches,
        )
        checks, notes = validity(self._scenario, collected)
        complete = self._finished is not None and not failure
        msgspec.structs.replace(
            self._manifest,
            complete=complete,
            t0_monotonic_s=started.t0_monotonic_s,
            notes=(*((failure,) if failure else ()), *unread, *notes),
            validity=checks,
        ).write(self._out)

    def _batches(self) -> tuple[StoredBatches, tuple[str, ...]]:
        """What the ledger says of the batches, and a note where it cannot be read."""
        ids = [row.batch_id for row in read_batch_rows(self._raw).values() if row.batch_id]
        if not ids:
            return StoredBatches(), ()
        try:
            return stored_batches(self._scenario.deployment.database, self._raw, ids), ()
        except DatabaseError as error:
            return StoredBatches(), (
                f"the ledger cannot be read, so batches are told as unfinished: {error}",
            )
