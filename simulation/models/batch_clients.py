"""The submitters of a scenario's batches: each hands its batch in when it is due, and asks until it has ended.

The counterpart of the live swarm's. Rows of the requests are told as their results are recorded, and what has none when the run
ends is `unfinished`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from reference_impl.batches.port import Batch, RequestProgress
from reference_impl.batches.records import batch_record
from reference_impl.batches.service import BatchService
from reference_impl.database.errors import DatabaseError
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.errors import ServiceError
from reference_impl.messages import Call, RequestTag
from reference_impl.telemetry import Outcome, RequestRecord, RequestTrace, SystemEvent
from simulation.models.network import REQUEST, RESPONSE, Link
from simulation.scenario.compiled_batches import CompiledBatch, place_of
from simulation.scenario.prompts import batch_requests

__all__ = ["BatchClients"]

T = TypeVar("T")


class BatchClients:
    """Plays `batches` against a gateway's `service`, behind `link`.

    Args:
        ledger: what the database holds, for the rows.
        on_record: told every request when its result is recorded, or the run has ended.
        on_event: told of batches, by events of kind `batch`.
    """

    def __init__(
        self,
        batches: Sequence[CompiledBatch],
        service: BatchService,
        link: Link,
        ledger: MemoryLedger,
        *,
        origin_s: float,
        on_record: Callable[[RequestRecord], None],
        on_event: Callable[[SystemEvent], None],
    ) -> None:
        self._submissions = [_Submission(batch) for batch in batches]
        self._by_number = {s.batch.number: s for s in self._submissions}
        self._service = service
        self._link = link
        self._ledger = ledger
        self._origin_s = origin_s
        self._on_record = on_record
        self._on_event = on_event
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self.sent = 0
        self.ended = 0

    async def play(self, until_s: float) -> None:
        """Submit all, and wait for their ends, until that instant of the loop's clock at most."""
        tasks = [
            self._loop.create_task(self._play(submission), name=f"batch {submission.batch.number}")
            for submission in self._submissions
        ]
        try:
            async with asyncio.timeout_at(until_s):
                await asyncio.gather(*tasks)
        except TimeoutError:
            pass  # what has no result by now is unfinished
        self._closed = True
        for submission in self._submissions:
            self._settle(submission, self._loop.time())

    def recorded(self, key: str, call: Call) -> None:
        """An instance has recorded the result of the task `key`, from this call."""
        batch_id, _, index = key.rpartition("/")
        number, place = place_of(call.request_id)
        submission = self._by_number.get(number)
        if self._closed or submission is None or place != int(index):
            return
        if submission.batch_id:
            self._record(submission, batch_id, place, call.trace)
        else:
            # Its submitter has not heard yet whether the batch was accepted.
            submission.early[batch_id].append((place, call.trace))

    async def _play(self, submission: _Submission) -> None:
        batch, loop = submission.batch, self._loop
        await asyncio.sleep(max(0.0, self._origin_s + batch.at_s - loop.time()))
        submission.sent_s = max(batch.at_s, loop.time() - self._origin_s)
        self.sent += len(batch)
        created = await self._submit(submission)
        if created is None:
            self._settle(submission, loop.time())
            return
        submission.batch_id = created.batch_id
        self._tell(submission, "submitted", requests=len(batch))
        for place, trace in submission.early.pop(created.batch_id, ()):
            self._record(submission, created.batch_id, place, trace)
        submission.early.clear()
        ended = await self._wait(submission)
        self._settle(submission, loop.time())
        self._tell(
            submission,
            "ended",
            succeeded=ended.succeeded,
            errored=ended.errored,
            canceled=ended.canceled,
            expired=ended.expired,
        )

    async def _submit(self, submission: _Submission) -> Batch | None:
        """Hand the batch in, again and again while the gateway cannot take it; None where it never will."""
        batch = submission.batch
        requests = batch_requests(batch)
        while True:
            try:
                return await self._ask(
                    submission, lambda: self._service.create(batch.tenant, requests)
                )
            except ServiceError as error:
                self._tell(submission, "refused", reason=error.message)
                if error.status < 500 and error.status != 429:
                    submission.refused = error.outcome
                    return None
            except DatabaseError as error:
                self._tell(submission, "refused", reason=str(error))
            await asyncio.sleep(batch.poll_s)

    async def _wait(self, submission: _Submission) -> Batch:
        """Ask every `poll_s` until the batch has ended. An answer that fails is asked for again."""
        batch = submission.batch
        while True:
            await asyncio.sleep(batch.poll_s)
            try:
                seen = await self._ask(
                    submission, lambda: self._service.retrieve(batch.tenant, submission.batch_id)
                )
            except (ServiceError, DatabaseError):
                continue
            if seen.status == "ended":
                return seen

    async def _ask(self, submission: _Submission, ask: Callable[[], Awaitable[T]]) -> T:
        """A call to the gateway, over the client's link."""
        tag = RequestTag(submission.batch.first_id, submission.asked)
        submission.asked += 1
        await asyncio.sleep(self._link.latency_s(tag, REQUEST))
        try:
            return await ask()
        finally:
            await asyncio.sleep(self._link.latency_s(tag, RESPONSE))

    # -- rows ---------------------------------------------------------------------------------------------------------

    def _record(
        self, submission: _Submission, batch_id: str, place: int, trace: RequestTrace
    ) -> None:
        if batch_id != submission.batch_id or submission.is_told[place]:
            return  # of a submission that was turned away halfway: its results are nobody's
        progress = self._ledger.batches().progress_of(batch_id, place)
        assert progress.recorded_s is not None
        self._tell_row(submission, place, progress, trace, progress.recorded_s)

    def _settle(self, submission: _Submission, now_s: float) -> None:
        """Tell what was not told: results that no instance recorded, and requests without one."""
        batches = self._ledger.batches()
        for place, told in enumerate(submission.is_told):
            if told or submission.sent_s is None:
                continue
            progress = None
            ended_s = now_s
            if submission.batch_id:
                progress = batches.progress_of(submission.batch_id, place)
                if progress.recorded_s is not None:
                    ended_s = progress.recorded_s
            self._tell_row(submission, place, progress, None, ended_s)

    def _tell_row(
        self,
        submission: _Submission,
        place: int,
        progress: RequestProgress | None,
        trace: RequestTrace | None,
        ended_s: float,
    ) -> None:
        batch = submission.batch
        assert submission.sent_s is not None
        submission.is_told[place] = True
        self.ended += 1
        entry = None
        if progress is not None:
            entry = self._ledger.entry(f"{submission.batch_id}/{place}")
        self._on_record(
            batch_record(
                progress,
                entry,
                trace,
                request_id=batch.first_id + place,
                tenant=batch.tenant,
                model=batch.model,
                input_tokens=batch.input_tokens.item(place),
                intended_s=batch.at_s,
                sent_s=submission.sent_s,
                ended_s=ended_s - self._origin_s,
                refused=submission.refused,
            )
        )

    def _tell(self, submission: _Submission, state: str, **detail: int | str) -> None:
        self._on_event(
            SystemEvent(
                t_s=self._loop.time(),
                kind="batch",
                subject=f"batch {submission.batch.number}",
                detail={"state": state, "batch_id": submission.batch_id, **detail},
            )
        )


class _Submission:
    """One batch on its way. `sent_s`: when it was first submitted, from the start of the run; `asked`: calls made for it."""

    def __init__(self, batch: CompiledBatch) -> None:
        self.batch = batch
        self.batch_id = ""
        self.sent_s: float | None = None
        self.asked = 0
        self.refused: Outcome | None = None
        self.is_told = [False] * len(batch)
        # By batch id, what was recorded before its submitter knew that id.
        self.early: dict[str, list[tuple[int, RequestTrace]]] = defaultdict(list)
