"""Locust as child processes: one that does everything, or a master and its workers."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from loadtests.child_process import ChildProcess, ProcessFailed, python_module
from loadtests.keys import API_KEY_VARIABLE
from loadtests.status import Failed, Finished, Ready, Status, StatusReader

__all__ = ["LocustProcesses", "SwarmOptions"]

READY_LIMIT_S: Final = 30.0
STOP_GRACE_S: Final = 8.0
POLL_S: Final = 0.1


class SwarmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a swarm injects; the defaults suit one machine.

    Attributes:
        workers: injector processes beside a master; 0: one process does everything.
        max_in_flight: bound on requests in flight, per injector; those beyond it wait in line and are counted.
        request_timeout_s: bound on one attempt, seconds.
        client_retries: attempts of the client beyond the first.
        start_delay_s: from the broadcast of instant 0 to instant 0.
        tags: send `x-twinload-request`; never to a real provider.
        web: show Locust's page. web_port: 0 takes a free one.
        web_linger_s: how long the page stays after the run; None: until interrupted.
    """

    workers: int = 0
    max_in_flight: int = 10_000
    request_timeout_s: float = 600.0
    client_retries: int = 0
    start_delay_s: float = 2.0
    tags: bool = True
    web: bool = False
    web_port: int = 0
    web_linger_s: float | None = None


class LocustProcesses:
    """The injectors of one run; a context manager that leaves no process behind.

    Args:
        folder: the run folder. workload_file: the compiled workload in it.
        target_url: where requests go.
        api_key: sent there, "" for none; `key_per_tenant` appends `.K` for tenant K of the workload.
        web_port: of the page; None: no page.

    Raises ProcessFailed.
    """

    def __init__(
        self,
        folder: Path,
        workload_file: Path,
        target_url: str,
        options: SwarmOptions,
        *,
        horizon_s: float,
        drain_s: float,
        seed: int,
        api_key: str = "",
        key_per_tenant: bool = False,
        web_port: int | None = None,
    ) -> None:
        self._folder = folder
        self._options = options
        self._statuses = StatusReader(folder)
        self._backlog: list[Status] = []
        self._main: ChildProcess | None = None
        self._workers: list[ChildProcess] = []
        self._finished = False
        self._environment = {API_KEY_VARIABLE: api_key}
        self._page = (
            ["--headless", "--only-summary"]
            if web_port is None
            else ["--autostart", "--web-host", "127.0.0.1", "--web-port", str(web_port)]
        )
        self._common = [
            *("-f", str(Path(__file__).with_name("locustfile.py"))),
            *("--host", target_url),
            *("--loglevel", "WARNING"),
            *("--workload", str(workload_file)),
            *("--run-dir", str(folder)),
            *("--horizon-s", repr(horizon_s)),
            *("--drain-s", repr(drain_s)),
            *("--max-in-flight", str(options.max_in_flight)),
            *("--request-timeout-s", repr(options.request_timeout_s)),
            *("--client-retries", str(options.client_retries)),
            *("--start-delay-s", repr(options.start_delay_s)),
            *("--seed", str(seed)),
            *([] if options.tags else ["--no-tags"]),
            *(["--key-per-tenant"] if key_per_tenant else []),
        ]

    def __enter__(self) -> LocustProcesses:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        n = self._options.workers
        users = ["-u", str(max(1, n)), "-r", str(max(1, n))]
        master = []
        if n:
            master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", "0"]
            master += ["--expect-workers", str(n)]
        self._main = self._spawn("locust", [*self._page, *users, *master])
        port = self._master_port()
        for k in range(n):
            where = ["--worker", "--master-host", "127.0.0.1", "--master-port", str(port)]
            self._workers.append(self._spawn(f"locust-worker-{k + 1}", where))

    def _spawn(self, name: str, arguments: list[str]) -> ChildProcess:
        return ChildProcess(
            name,
            python_module("locust", *self._common, *arguments),
            self._folder / "logs",
            environment=self._environment,
            # So that it flushes its rows first.
            death_signal=signal.SIGTERM,
        )

    def _master_port(self) -> int:
        deadline = time.monotonic() + READY_LIMIT_S
        while True:
            said = self.poll()
            self._backlog += said
            for status in said:
                if isinstance(status, Ready):
                    return status.master_port
            if time.monotonic() > deadline:
                raise ProcessFailed(f"locust was not ready within {READY_LIMIT_S:g} s")
            time.sleep(POLL_S)

    def poll(self) -> list[Status]:
        """What was said since the last poll. Raises ProcessFailed when a process has ended before the run had."""
        assert self._main is not None
        exits = [(child, child.exit_status()) for child in (self._main, *self._workers)]
        said = [*self._backlog, *self._statuses.poll()]
        self._backlog.clear()
        self._finished |= any(isinstance(status, Finished | Failed) for status in said)
        if not self._finished:
            for child, status in exits:
                if status is not None:
                    raise ProcessFailed(child.obituary(status))
        return said

    @property
    def ended(self) -> bool:
        """Whether the conducting process has ended."""
        return self._main is None or self._main.exit_status() is not None

    def stop(self) -> None:
        """End all of them; each gets time to flush its rows. Idempotent."""
        children = [child for child in (*self._workers, self._main) if child is not None]
        for child in children:
            child.terminate()
        deadline = time.monotonic() + STOP_GRACE_S
        try:
            for child in children:
                child.stop(max(0.1, deadline - time.monotonic()))
        finally:
            for child in children:
                if child.exit_status() is None:
                    child.stop(0.0)
