"""The port to where batches and their results are kept, and what is kept of them.

The store, not the queue, decides what took effect: the first result of a request counts, and with it, in the same transaction,
goes the row of the ledger that it costs. A batch has ended when every request has a result. Gateways and workers in several
processes share a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import msgspec

from reference_impl.database.entries import LedgerEntry

__all__ = [
    "RESULT_KINDS",
    "Batch",
    "BatchPage",
    "BatchRequest",
    "BatchStore",
    "Claim",
    "RequestProgress",
    "ResultKind",
]

ResultKind = Literal["succeeded", "errored", "canceled", "expired"]
RESULT_KINDS: tuple[ResultKind, ...] = get_args(ResultKind)


class BatchRequest(msgspec.Struct, frozen=True):
    """One request: `params` is the body of a Messages request."""

    custom_id: str
    params: msgspec.Raw


class Batch(msgspec.Struct, frozen=True):
    """A batch as of now. Instants are Unix seconds; `processing` counts the requests without a result."""

    batch_id: str
    tenant: str
    created_s: float
    expires_s: float
    processing: int
    succeeded: int = 0
    errored: int = 0
    canceled: int = 0
    expired: int = 0
    cancel_initiated_s: float | None = None
    ended_s: float | None = None

    @property
    def status(self) -> Literal["in_progress", "canceling", "ended"]:
        if self.processing == 0:
            return "ended"
        return "in_progress" if self.cancel_initiated_s is None else "canceling"


class BatchPage(msgspec.Struct, frozen=True):
    """Some batches of a tenant, the newest first. `has_more`: others follow, in the direction of the page."""

    batches: list[Batch]
    has_more: bool = False


class Claim(msgspec.Struct, frozen=True):
    """A request that is about to be answered. `runs` counts the times that it was claimed, this one included."""

    runs: int
    tenant: str
    params: bytes
    created_s: float
    expires_s: float
    is_canceled: bool
    custom_id: str


class RequestProgress(msgspec.Struct, frozen=True):
    """How far one request is: the times that it was claimed, and what its result is of and since when (None: it has none)."""

    index: int
    custom_id: str
    runs: int
    kind: ResultKind | None = None
    recorded_s: float | None = None


class BatchStore(Protocol):
    """Batches, their requests and results. Every call may raise a DatabaseError."""

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        """Keep a new batch, whose requests are not in the queue yet."""
        ...

    async def mark_enqueued(self, batch_id: str) -> None:
        """Every request of it is in the queue."""
        ...

    async def not_enqueued(self) -> dict[str, list[int]]:
        """By batch, the requests without a result of batches that were not marked: a crash came between."""
        ...

    async def get(self, batch_id: str) -> Batch | None: ...

    async def of_tenant(
        self,
        tenant: str,
        limit: int,
        *,
        after_id: str | None = None,
        before_id: str | None = None,
    ) -> BatchPage | None:
        """At most `limit` of a tenant: the newest, those next after (older than) a batch, or those next before (newer).

        None: the tenant has no batch of that id. Only the batches of the page are counted. `after_id` goes before `before_id`.
        """
        ...

    async def claim(self, batch_id: str, index: int) -> Claim | None:
        """Count a run of a request that has no result yet; None: nobody waits for one."""
        ...

    async def record(
        self,
        batch_id: str,
        index: int,
        kind: ResultKind,
        result: bytes,
        now: float,
        entry: LedgerEntry | None = None,
    ) -> bool:
        """Keep the result (JSON) of a request, and write `entry`, unless it has one. Returns whether it had none.

        The runs before the one that was recorded were upstream calls made again: they are added to the entry's `attempts`.
        """
        ...

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        """Give every request without a result this one, of kind `expired`."""
        ...

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        """(index, custom id, result) of requests with an index above `after`, in the order of the requests."""
        ...

    async def progress(self, batch_id: str, after: int, limit: int) -> list[RequestProgress]:
        """How far requests with an index above `after` are, in the order of the requests."""
        ...

    async def cancel(self, batch_id: str, now: float) -> None:
        """Note that it shall end early."""
        ...

    async def delete(self, batch_id: str) -> None: ...
