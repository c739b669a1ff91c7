"""Runs one injector inside a Locust process: waits for t0, replays its share, reports to the master."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, time
from typing import Any

from gevent.event import AsyncResult

from loadtests.batch_submitter import BatchSubmitter
from loadtests.client_rows import ClientRow, RowWriter, rows_file
from loadtests.conductor import FINISHED_MESSAGE, START_MESSAGE, boot_id
from loadtests.http_client import HttpClient
from loadtests.injector import Injector, InjectorOptions
from loadtests.metrics import ClientMetrics
from loadtests.reply import Reply
from loadtests.split import rows_of_injector
from loadtests.target import PATH
from simulation.scenario.workload import CompiledWorkload

__all__ = ["InjectorHost"]


class RequestFailed(Exception):
    """Shown in Locust's table of failures, counted by its text; the outcome class comes first."""


class InjectorHost:
    """One injector and its ties to Locust's events.

    Args:
        metrics: where to count; None in a worker, which counts for itself and reports to the master.
    """

    def __init__(
        self,
        environment: Any,
        workload: CompiledWorkload,
        folder: Path,
        options: InjectorOptions,
        *,
        metrics: ClientMetrics | None,
    ) -> None:
        self._environment = environment
        self._runner = environment.runner
        self._workload = workload
        self._folder = folder
        self._options = options
        self._metrics = metrics or ClientMetrics()
        self._start: AsyncResult = AsyncResult()
        self._injector: Injector | None = None
        self._submitter: BatchSubmitter | None = None
        self._runner.register_message(START_MESSAGE, self._on_start)
        environment.events.test_stopping.add_listener(self._on_stop)
        environment.events.quitting.add_listener(self._on_stop)
        if metrics is None:
            environment.events.report_to_master.add_listener(self._on_report)

    def replay(self) -> None:
        """Block until this injector's share of the workload is done; a second call does nothing."""
        if self._injector is not None:
            return
        message = self._start.get()
        client_id = self._runner.client_id
        number = message["injectors"][client_id]
        rows = rows_of_injector(self._workload.session_id, number, len(message["injectors"]))
        writer = RowWriter(rows_file(self._folder, number))
        self._injector = Injector(
            self._workload,
            rows,
            HttpClient(self._environment.host or ""),
            writer,
            self._options,
            metrics=self._metrics,
            on_reply=self._on_reply,
        )
        t0 = _on_this_clock(message)
        if number == 0 and self._workload.batches:
            self._submitter = self._make_submitter()
            self._submitter.start(t0)
        self._injector.run(t0)
        if self._submitter is not None:
            self._submitter.join()
        self._runner.send_message(
            FINISHED_MESSAGE, {"client_id": client_id, "requests": writer.rows}
        )

    def _make_submitter(self) -> BatchSubmitter:
        workload, options = self._workload, self._options
        keys = options.api_keys or ("",)
        tenants = workload.all_tenants
        return BatchSubmitter(
            workload.batches,
            [
                keys[tenants.index(batch.tenant)] if len(keys) > 1 else keys[0]
                for batch in workload.batches
            ],
            self._environment.host or "",
            self._folder,
            end_s=options.horizon_s + options.drain_s,
            request_timeout_s=options.request_timeout_s,
        )

    def _on_start(self, msg: Any, **_event: Any) -> None:
        self._start.set(msg.data)

    def _on_stop(self, **_event: Any) -> None:
        if self._injector is not None:
            self._injector.stop()
        if self._submitter is not None:
            self._submitter.stop()

    def _on_report(self, data: dict[str, Any], **_event: Any) -> None:
        data["twinload"] = self._metrics.take()

    def _on_reply(self, row: ClientRow, reply: Reply) -> None:
        """One `request` event per logical request, its time counted from the intended start."""
        failure = None
        if row.outcome != "ok":
            failure = RequestFailed(
                f"{row.outcome}: {reply.detail}" if reply.detail else row.outcome
            )
        self._environment.events.request.fire(
            request_type="POST",
            name=PATH,
            response_time=(row.done_s - row.intended_s) * 1e3,
            response_length=reply.received_bytes,
            exception=failure,
            context={},
        )


def _on_this_clock(message: dict[str, Any]) -> float:
    """t0 on this process's monotonic clock: the master's own on the same machine, through the wall clock on another."""
    if message["boot_id"] and message["boot_id"] == boot_id():
        return float(message["t0_monotonic_s"])
    return monotonic() + (float(message["t0_unix_s"]) - time())
