"""The part of a swarm that there is once: it sets t0, follows the injectors, and ends the run.

It lives in Locust's master, or in the only process of a local swarm. A split of the workload among n injectors is frozen at
the start, so a worker that is lost takes its arrivals with it: the run is ended with a message that says so, instead of
going on with less load than was asked for.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic, time
from typing import Any, Final

import gevent
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner

from loadtests.metrics import ClientMetrics
from loadtests.status import Failed, Finished, Progress, Ready, Started, StatusWriter

log = logging.getLogger(__name__)

__all__ = ["FINISHED_MESSAGE", "START_MESSAGE", "Conductor", "boot_id"]

START_MESSAGE: Final = "twinload_start"
FINISHED_MESSAGE: Final = "twinload_finished"
PROGRESS_INTERVAL_S: Final = 0.5
EXIT_LOST_WORKER: Final = 3


class Conductor:
    """Starts and ends the injectors of one run; `metrics` holds what all of them have counted.

    Args:
        environment: Locust's environment (its types are partial).
        folder: the run folder; statuses are written there.
        start_delay_s: from the broadcast of t0 to t0.
        stay: leave the page up when the run is over.
    """

    def __init__(self, environment: Any, folder: Path, *, start_delay_s: float, stay: bool) -> None:
        self.metrics = ClientMetrics()
        self._environment = environment
        self._runner = environment.runner
        self._start_delay_s = start_delay_s
        self._stay = stay
        self._status = StatusWriter(folder)
        self._injectors: dict[str, int] = {}
        self._finished: dict[str, int] = {}
        self._t0 = math.nan
        self._over = False
        self._runner.register_message(FINISHED_MESSAGE, self._on_finished)
        environment.events.test_start.add_listener(self._on_test_start)
        environment.events.test_stopping.add_listener(self._on_test_stopping)
        environment.events.worker_report.add_listener(self._on_worker_report)
        environment.events.reset_stats.add_listener(self._on_reset)
        is_master = isinstance(self._runner, MasterRunner)
        self._status.write(Ready(self._runner.server.port if is_master else 0))

    def _on_test_start(self, **_event: Any) -> None:
        if self._injectors:
            log.warning("this workload has been replayed; start another swarm for another run")
            gevent.spawn(self._runner.stop)
            return
        runner = self._runner
        if isinstance(runner, LocalRunner):
            self._injectors = {runner.client_id: 0}
        else:
            self._injectors = {client.id: k for k, client in enumerate(runner.clients.ready)}
        self._t0 = monotonic() + self._start_delay_s
        t0_unix_s = time() + self._start_delay_s
        message = {
            "t0_monotonic_s": self._t0,
            "t0_unix_s": t0_unix_s,
            "boot_id": boot_id(),
            "injectors": self._injectors,
        }
        self._status.write(Started(self._t0, t0_unix_s, len(self._injectors)))
        runner.send_message(START_MESSAGE, message)
        gevent.spawn(self._watch)

    def _on_test_stopping(self, **_event: Any) -> None:
        if self._injectors and not self._over:
            self._over = True
            self._status.write(Failed(f"stopped by hand at {monotonic() - self._t0:.1f} s"))

    def _on_worker_report(self, data: dict[str, Any], **_event: Any) -> None:
        if report := data.get("twinload"):
            self.metrics.merge(report)

    def _on_reset(self, **_event: Any) -> None:
        self.metrics.take()

    def _on_finished(self, msg: Any, **_event: Any) -> None:
        self._finished[msg.data["client_id"]] = msg.data["requests"]
        if not self._over and len(self._finished) == len(self._injectors):
            self._over = True
            gevent.spawn(self._finish)

    def _finish(self) -> None:
        requests = sum(self._finished.values())
        self._status.write(Finished(monotonic() - self._t0, requests))
        self._end(0)

    def _watch(self) -> None:
        """Report progress, and notice a worker that is gone before it has finished."""
        while not self._over:
            gevent.sleep(PROGRESS_INTERVAL_S)
            self._status.write(self._progress())
            lost = self._lost_worker()
            if lost is not None and not self._over:
                n = len(self._injectors)
                self._fail(
                    f"worker {self._injectors[lost] + 1} of {n} was lost at "
                    f"{monotonic() - self._t0:.1f} s; its later arrivals were not sent"
                )

    def _lost_worker(self) -> str | None:
        if isinstance(self._runner, LocalRunner):
            return None
        clients = self._runner.clients
        for client_id in self._injectors:
            gone = client_id not in clients or clients[client_id].state == STATE_MISSING
            if gone and client_id not in self._finished:
                return client_id
        return None

    def _progress(self) -> Progress:
        metrics = self.metrics
        latency, lag = metrics.durations["latency_s"], metrics.durations["lag_s"]
        requests = metrics.counts["requests"]
        return Progress(
            t_s=monotonic() - self._t0,
            requests=requests,
            failures=requests - metrics.outcomes.get("ok", 0),
            latency_p50_s=latency.quantile(0.50),
            latency_p99_s=latency.quantile(0.99),
            lag_p99_s=lag.quantile(0.99),
        )

    def _fail(self, message: str) -> None:
        self._over = True
        self._status.write(Failed(message))
        gevent.spawn(self._end, EXIT_LOST_WORKER)

    def _end(self, exit_code: int) -> None:
        self._environment.process_exit_code = exit_code
        end: Callable[[], None] = self._runner.stop if self._stay else self._runner.quit
        end()


def boot_id() -> str:
    """Tells whether two processes share one monotonic clock; "" where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
