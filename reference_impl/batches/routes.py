"""`/v1/messages/batches` as routes of the gateway, in the shapes that the SDK reads."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.batches.service import BatchService
from reference_impl.database.errors import DatabaseError, summary
from reference_impl.errors import InvalidRequest, PayloadTooLarge, Rejected, ServiceError
from reference_impl.http_errors import REQUEST_ID_HEADER, error_response

__all__ = ["BatchRoutes"]

log = logging.getLogger("twinload.batches")

_PATH: Final = "/v1/messages/batches"
_MAX_BODY_BYTES: Final = 256 * 1024 * 1024  # the Message Batches API's own limit
_DEFAULT_PAGE: Final = 20
_MAX_PAGE: Final = 1000
_CLIENT_LEFT: Final = 499  # as nginx calls it; nobody hears it


class _Body(msgspec.Struct):
    requests: list[BatchRequest]


_decode_body = msgspec.json.Decoder(_Body).decode

Answer = Callable[[Request, str], Awaitable[Response]]


class BatchRoutes:
    """The HTTP side of a `BatchService`.

    Args:
        service: does the work.
        authenticate: headers -> tenant; raises AuthenticationFailed.
        new_request_id: names the next request, in its answer's header and in its error.
    """

    def __init__(
        self,
        service: BatchService,
        authenticate: Callable[[Mapping[bytes, bytes]], str],
        new_request_id: Callable[[], str],
    ) -> None:
        self._service = service
        self._authenticate = authenticate
        self._new_request_id = new_request_id

    def routes(self) -> list[Route]:
        one = _PATH + "/{batch_id}"
        return [
            Route(_PATH, self._answering(self._create), methods=["POST"]),
            Route(_PATH, self._answering(self._list), methods=["GET"]),
            Route(one, self._answering(self._retrieve), methods=["GET"]),
            Route(one, self._answering(self._delete), methods=["DELETE"]),
            Route(one + "/results", self._answering(self._results), methods=["GET"]),
            Route(one + "/cancel", self._answering(self._cancel), methods=["POST"]),
        ]

    def _answering(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            request_id = self._new_request_id()
            try:
                response = await answer(request, self._authenticate(dict(request.headers.raw)))
            except ServiceError as error:
                return error_response(error, request_id)
            except DatabaseError as error:
                log.warning("batches cannot be read or written: %s", summary(error))
                away = Rejected(
                    "the store of batches does not answer; try again later",
                    status=503,
                    retry_after_s=1.0,
                )
                return error_response(away, request_id)
            except ClientDisconnect:
                return Response(status_code=_CLIENT_LEFT)
            except Exception:  # the edge of the process: whatever it was, the client gets an answer
                log.exception("a request for batches failed in a way that nobody foresaw")
                return error_response(ServiceError("internal error"), request_id)
            response.headers[REQUEST_ID_HEADER] = request_id
            return response

        return endpoint

    async def _create(self, request: Request, tenant: str) -> Response:
        parts: list[bytes] = []
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > _MAX_BODY_BYTES:
                raise PayloadTooLarge(f"the body exceeds {_MAX_BODY_BYTES} bytes")
            parts.append(part)
        try:
            body = _decode_body(b"".join(parts))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"the body is no batch: {error}") from error
        batch = await self._service.create(tenant, body.requests)
        return JSONResponse(_shown(request, batch))

    async def _list(self, request: Request, tenant: str) -> Response:
        query = request.query_params
        try:
            limit = int(query.get("limit", _DEFAULT_PAGE))
        except ValueError:
            limit = 0
        if not 1 <= limit <= _MAX_PAGE:
            raise InvalidRequest(f"limit: expected 1 to {_MAX_PAGE}, got {query['limit'][:20]!r}")
        found = await self._service.of_tenant(
            tenant, limit, after_id=query.get("after_id"), before_id=query.get("before_id")
        )
        page = found.batches
        return JSONResponse(
            {
                "data": [_shown(request, batch) for batch in page],
                "has_more": found.has_more,
                "first_id": page[0].batch_id if page else None,
                "last_id": page[-1].batch_id if page else None,
            }
        )

    async def _retrieve(self, request: Request, tenant: str) -> Response:
        batch = await self._service.retrieve(tenant, request.path_params["batch_id"])
        return JSONResponse(_shown(request, batch))

    async def _cancel(self, request: Request, tenant: str) -> Response:
        batch = await self._service.cancel(tenant, request.path_params["batch_id"])
        return JSONResponse(_shown(request, batch))

    async def _delete(self, request: Request, tenant: str) -> Response:
        batch_id = request.path_params["batch_id"]
        await self._service.delete(tenant, batch_id)
        return JSONResponse({"id": batch_id, "type": "message_batch_deleted"})

    async def _results(self, request: Request, tenant: str) -> Response:
        batch_id = request.path_params["batch_id"]
        lines = await self._service.results(tenant, batch_id)
        return StreamingResponse(lines, media_type="application/x-jsonl")


def _shown(request: Request, batch: Batch) -> dict[str, Any]:
    """A batch as the API shows it. The URL of its results is the one by which the client came."""
    ended = batch.status == "ended"
    url = f"{request.url.scheme}://{request.url.netloc}{_PATH}/{batch.batch_id}/results"
    return {
        "id": batch.batch_id,
        "type": "message_batch",
        "processing_status": batch.status,
        "request_counts": {
            "processing": batch.processing,
            "succeeded": batch.succeeded,
            "errored": batch.errored,
            "canceled": batch.canceled,
            "expired": batch.expired,
        },
        "created_at": _date(batch.created_s),
        "expires_at": _date(batch.expires_s),
        "ended_at": _date(batch.ended_s),
        "cancel_initiated_at": _date(batch.cancel_initiated_s),
        "archived_at": None,
        "results_url": url if ended else None,
    }


def _date(instant_s: float | None) -> str | None:
    return None if instant_s is None else datetime.fromtimestamp(instant_s, UTC).isoformat()
