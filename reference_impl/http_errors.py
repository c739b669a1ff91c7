"""Errors as the Messages API says them over HTTP: one shape for every route, those that do not exist included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from reference_impl.errors import InvalidRequest, NotFound, ServiceError, error_for_status

__all__ = ["REQUEST_ID_HEADER", "error_document", "error_response", "routing_errors"]

REQUEST_ID_HEADER: Final = "request-id"


def error_document(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The body of an error; `request_id` is that of the response's header."""
    return {
        "type": "error",
        "error": {"type": error.error_type, "message": error.message},
        "request_id": request_id,
    }


def error_response(error: ServiceError, request_id: str) -> Response:
    """An answer that is an error and nothing else."""
    headers = {REQUEST_ID_HEADER: request_id}
    if error.retry_after_s is not None:
        headers["retry-after"] = f"{error.retry_after_s:g}"
    return JSONResponse(error_document(error, request_id), error.status, headers)


def routing_errors(
    new_request_id: Callable[[], str],
) -> dict[Any, Callable[[Request, Exception], Response]]:
    """Starlette's `exception_handlers` for requests that no route takes."""

    def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path[:200]}"
        found: ServiceError
        if error.status_code == 404:
            found = NotFound(f"{what}: there is no such path")
        elif error.status_code == 405:
            found = InvalidRequest(f"{what}: this path does not take that method", status=405)
        else:
            found = error_for_status(error.status_code, f"{what}: {error.detail}")
        response = error_response(found, new_request_id())
        response.headers.update(error.headers or {})
        return response

    return {HTTPException: answer}
