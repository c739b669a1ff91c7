"""The port to where batches and their results are kept, and what is kept of them.

The store, not the queue, decides what took effect: the first result of a request counts, and a batch has ended when every
request has one. Workers in several processes share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

__all__ = ["Batch", "BatchRequest", "BatchStore", "ResultKind"]

ResultKind = Literal["succeeded", "errored", "canceled", "expired"]


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


class BatchStore(Protocol):
    """Batches, their requests and results."""

    async def create(self, batch: Batch, requests: Sequence[BatchRequest]) -> None:
        """Keep a new batch, whose requests are not in the queue yet."""
        ...

    async def mark_enqueued(self, batch_id: str) -> None:
        """Every request of it is in the queue."""
        ...

    async def not_enqueued(self) -> list[tuple[str, int, bytes]]:
        """(batch, index, params) of requests without a result whose batch was not marked: a crash came between."""
        ...

    async def get(self, batch_id: str) -> Batch | None: ...

    async def of_tenant(self, tenant: str) -> list[Batch]:
        """All of a tenant, the newest first."""
        ...

    async def record(
        self, batch_id: str, index: int, kind: ResultKind, result: bytes, now: float
    ) -> bool:
        """Keep the result (JSON) of a request unless it has one. Returns whether it is this one."""
        ...

    async def still_wanted(self, batch_id: str, index: int) -> tuple[float, bool] | None:
        """(when its batch expires, whether that is being canceled) of a request without a result; None: nobody waits."""
        ...

    async def expire(self, batch_id: str, result: bytes, now: float) -> None:
        """Give every request without a result this one, of kind `expired`."""
        ...

    async def results(self, batch_id: str, after: int, limit: int) -> list[tuple[int, str, bytes]]:
        """(index, custom id, result) of requests with an index above `after`, in the order of the requests."""
        ...

    async def cancel(self, batch_id: str, now: float) -> None:
        """Note that it shall end early."""
        ...

    async def delete(self, batch_id: str) -> None: ...

    async def aclose(self) -> None: ...
