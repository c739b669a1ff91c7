"""Submits the batches of a workload through the gateway's HTTP API, each when it is due, and asks until they have ended.

A greenlet a batch, in the first injector. Bodies are encoded before instant 0, so that a large one does not delay the injector's
other requests.
"""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Final

import gevent
import msgspec
from gevent import socket
from gevent.event import Event
from gevent.pool import Group

from loadtests.batch_rows import BATCHES_FILE, BatchRow
from loadtests.target import API_VERSION, parse_target
from reference_impl.errors import error_for_status
from reference_impl.telemetry import SystemEvent
from reference_impl.telemetry.run_log import EVENTS_PATTERN
from simulation.scenario.compiled_batches import CompiledBatch
from simulation.scenario.prompts import batch_requests

__all__ = ["BatchSubmitter"]

PATH: Final = "/v1/messages/batches"
TOO_MANY: Final = 429


class _Counts(msgspec.Struct):
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0


class _Batch(msgspec.Struct):
    """The part of a batch as the API shows it that is read."""

    id: str
    processing_status: str
    request_counts: _Counts = msgspec.field(default_factory=_Counts)


class _Refused(Exception):
    """An answer that is no batch, or none at all (status 0)."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Connection(http.client.HTTPConnection):
    """On a socket of gevent's, whether or not Locust has replaced the standard library's."""

    def connect(self) -> None:
        self.sock = socket.create_connection((self.host, self.port), self.timeout)


class BatchSubmitter:
    """`start(t0)`, then `join()`; `stop()` ends it early.

    Args:
        batches: what to submit. api_keys: one for each, "" for none.
        url: of the gateway.
        folder: what becomes of them is written there.
        end_s: when the run ends, counted from t0. request_timeout_s: for one call.
    """

    def __init__(
        self,
        batches: Sequence[CompiledBatch],
        api_keys: Sequence[str],
        url: str,
        folder: Path,
        *,
        end_s: float,
        request_timeout_s: float = 600.0,
    ) -> None:
        self._batches = list(zip(batches, api_keys, strict=True))
        self._host, self._port, self._prefix = parse_target(url)
        self._end_s = end_s
        self._timeout_s = request_timeout_s
        self._rows = (folder / BATCHES_FILE).open("xb", buffering=0)
        self._events = (folder / EVENTS_PATTERN.replace("*", "batches")).open("ab", buffering=0)
        self._encode = msgspec.json.Encoder().encode
        self._greenlets = Group()
        self._stopping = Event()
        self._t0 = 0.0

    def start(self, t0: float) -> None:
        """Begin; instant 0 is `t0` on the monotonic clock."""
        self._t0 = t0
        for batch, api_key in self._batches:
            body = self._encode({"requests": batch_requests(batch)})
            self._greenlets.spawn(self._play, batch, api_key, body)

    def join(self) -> None:
        """Return when all have ended, or the run has."""
        self._greenlets.join(timeout=max(0.0, self._t0 + self._end_s - monotonic()))
        self.stop()

    def stop(self) -> None:
        """End now. Idempotent."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._greenlets.kill(block=False)
            self._rows.close()
            self._events.close()

    def _play(self, batch: CompiledBatch, api_key: str, body: bytes) -> None:
        self._sleep(self._t0 + batch.at_s - monotonic())
        intended_s = batch.at_s
        row = BatchRow(
            number=batch.number,
            intended_s=intended_s,
            sent_s=max(intended_s, monotonic() - self._t0),
        )
        self._write(row)
        submitted: _Batch | None = None
        while submitted is None:
            try:
                submitted = self._call("POST", PATH, api_key, body)
            except _Refused as error:
                self._tell(batch, "refused", reason=str(error))
                if error.status and error.status < 500 and error.status != TOO_MANY:
                    refused = error_for_status(error.status, str(error)).outcome
                    self._write(msgspec.structs.replace(row, refused=refused))
                    return
                self._sleep(batch.poll_s)
        row = msgspec.structs.replace(row, batch_id=submitted.id)
        self._write(row)
        self._tell(batch, "submitted", batch_id=submitted.id, requests=len(batch))
        seen = submitted
        while seen.processing_status != "ended":
            self._sleep(batch.poll_s)
            try:
                seen = self._call("GET", f"{PATH}/{submitted.id}", api_key)
            except _Refused:
                continue  # asked again when it is due
        self._write(msgspec.structs.replace(row, ended_s=monotonic() - self._t0))
        counts = msgspec.structs.asdict(seen.request_counts)
        self._tell(batch, "ended", batch_id=submitted.id, **counts)

    def _sleep(self, seconds: float) -> None:
        gevent.sleep(max(0.0, seconds))

    def _call(self, method: str, path: str, api_key: str, body: bytes | None = None) -> _Batch:
        """One exchange over a connection of its own. Raises _Refused."""
        headers = {"anthropic-version": API_VERSION, "user-agent": "twinload"}
        if api_key:
            headers["x-api-key"] = api_key
        if body is not None:
            headers["content-type"] = "application/json"
        connection = _Connection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request(method, self._prefix + path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _Refused(0, str(error) or type(error).__name__) from error
        finally:
            connection.close()
        if response.status >= 400:
            raise _Refused(
                response.status, f"{response.status}: {answer[:300].decode(errors='replace')}"
            )
        try:
            return msgspec.json.decode(answer, type=_Batch)
        except msgspec.DecodeError as error:
            raise _Refused(0, f"not a batch: {error}") from error

    def _write(self, row: BatchRow) -> None:
        self._rows.write(self._encode(row) + b"\n")

    def _tell(self, batch: CompiledBatch, state: str, **detail: Any) -> None:
        event = SystemEvent(
            t_s=monotonic(),
            kind="batch",
            subject=f"batch {batch.number}",
            detail={"state": state, **detail},
        )
        self._events.write(self._encode(event) + b"\n")
