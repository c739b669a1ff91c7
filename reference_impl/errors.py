"""The error tree of the system under study.

Every failure that crosses a component's boundary is a `ServiceError`. It knows how it looks on the wire (HTTP status and
the Messages API's error type), whether trying again can help, and which class of outcome the request's record gets.
Adapters translate foreign exceptions into these at the edge, so no policy ever sees a driver's own error.
"""

from __future__ import annotations

from typing import ClassVar

from reference_impl.telemetry.records import Outcome

__all__ = [
    "AuthenticationFailed",
    "ConnectionFailed",
    "EndpointUnreachable",
    "InvalidRequest",
    "NoInstance",
    "NotFound",
    "Overloaded",
    "PayloadTooLarge",
    "PermissionDenied",
    "RateLimited",
    "Rejected",
    "RequestTimeout",
    "ServiceError",
    "StreamBroken",
    "UpstreamFailed",
    "error_for_status",
]


class ServiceError(Exception):
    """Root of the tree.

    Attributes:
        status: HTTP status that a client sees.
        error_type: `error.type` in the Messages API's error body.
        outcome: outcome class of the record (`reference_impl.telemetry.Outcome`).
        retryable: whether another attempt may succeed.
        retry_after_s: seconds that the peer asked to wait, or None.
        request_id: the peer's own id of the failed request, or "".
    """

    status: int = 500
    error_type: ClassVar[str] = "api_error"
    outcome: ClassVar[Outcome] = "server_error"
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        request_id: str = "",
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        if status is not None:
            self.status = status
        if retryable is not None:
            self.retryable = retryable


class InvalidRequest(ServiceError):
    """The request itself is wrong; the same request will be refused again."""

    status = 400
    error_type = "invalid_request_error"
    outcome: ClassVar[Outcome] = "client_error"


class AuthenticationFailed(InvalidRequest):
    """The key is missing, unknown or revoked."""

    status = 401
    error_type = "authentication_error"


class PermissionDenied(InvalidRequest):
    """The key is known but may not do this."""

    status = 403
    error_type = "permission_error"


class NotFound(InvalidRequest):
    """The model, batch or route does not exist."""

    status = 404
    error_type = "not_found_error"


class PayloadTooLarge(InvalidRequest):
    """The body exceeds the limit of the endpoint."""

    status = 413
    error_type = "request_too_large"


class RateLimited(ServiceError):
    """A rate limit of the peer was reached (429)."""

    status = 429
    error_type = "rate_limit_error"
    outcome: ClassVar[Outcome] = "rate_limited"
    retryable = True


class Overloaded(ServiceError):
    """The endpoint as a whole has too much to do (529)."""

    status = 529
    error_type = "overloaded_error"
    outcome: ClassVar[Outcome] = "overloaded"
    retryable = True


class Rejected(Overloaded):
    """Our own admission control or a full queue turned the request away."""

    outcome: ClassVar[Outcome] = "rejected"
    retryable = False


class NoInstance(Rejected):
    """No instance is ready to take the request."""

    status = 503


class UpstreamFailed(ServiceError):
    """The peer answered with a server error (5xx)."""

    status = 502
    retryable = True


class ConnectionFailed(UpstreamFailed):
    """No connection, or it was lost before the first event of an answer."""

    outcome: ClassVar[Outcome] = "connection_error"


class EndpointUnreachable(UpstreamFailed):
    """An instance is well, but its attempts found no connection to the endpoint.

    Apart from `ConnectionFailed`, because another instance would fare no better: the gateway tries others only when it is
    the instance that cannot be reached.
    """

    outcome: ClassVar[Outcome] = "connection_error"


class RequestTimeout(ServiceError):
    """The time allowed for an attempt, or for the whole request, has passed."""

    status = 504
    error_type = "timeout_error"
    outcome: ClassVar[Outcome] = "timeout"
    retryable = True


class StreamBroken(ServiceError):
    """The stream ended, or carried an error, after its first event: what was delivered cannot be taken back."""

    status = 502
    outcome: ClassVar[Outcome] = "stream_broken"


_BY_STATUS: dict[int, type[ServiceError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    408: RequestTimeout,
    413: PayloadTooLarge,
    429: RateLimited,
    504: RequestTimeout,
    529: Overloaded,
}


def error_for_status(
    status: int, message: str, *, retry_after_s: float | None = None, request_id: str = ""
) -> ServiceError:
    """The error that an HTTP answer of `status` (>= 400) stands for; 408, 409, 429 and 5xx are retryable."""
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = InvalidRequest if status < 500 else UpstreamFailed
    return kind(
        message,
        status=status,
        retry_after_s=retry_after_s,
        request_id=request_id,
        retryable=True if status in (408, 409) else None,
    )
