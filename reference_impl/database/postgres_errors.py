"""What asyncpg raises, as errors of ours.

A statement that the server answered with an error was rolled back: repeating it is safe. A connection that was lost under
way says nothing about the statement, so repeating is left to callers who know that theirs is idempotent.
"""

from __future__ import annotations

import socket
import ssl

import asyncpg

from reference_impl.database.errors import (
    BadDsn,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    DiskFull,
    InvalidValue,
    PoolExhausted,
    StatementFailed,
    StatementTimeout,
    summary,
)

__all__ = ["FOREIGN", "exhausted", "translated"]

# What values raise on their way into COPY, which reach no server. (As arguments they raise asyncpg's DataError, of class 22.)
_UNENCODABLE = (OverflowError, UnicodeError)
# Everything that a call of asyncpg may raise and that is not a defect of the caller.
FOREIGN = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError, *_UNENCODABLE)

# By SQLSTATE, the longest prefix wins (PostgreSQL manual, appendix A).
_BY_SQLSTATE: dict[str, type[DatabaseError]] = {
    "08": DatabaseUnavailable,  # connection exceptions
    "22": InvalidValue,  # data exceptions
    "23": InvalidValue,  # constraints
    "26000": DatabaseRefused,  # no such prepared statement: see `translated`
    "42P05": DatabaseRefused,  # such a prepared statement exists already
    "25006": DatabaseUnavailable,  # read only: a standby that is not yet promoted
    "28": DatabaseRefused,  # authorisation
    "3D000": DatabaseRefused,  # no such database
    "42501": DatabaseRefused,  # insufficient privilege
    "40001": DatabaseUnavailable,  # serialisation failure
    "40P01": DatabaseUnavailable,  # deadlock
    "53100": DiskFull,
    "53": DatabaseUnavailable,  # out of memory, too many connections
    "55P03": DatabaseUnavailable,  # lock not available
    "57014": StatementTimeout,
    "57": DatabaseUnavailable,  # shutting down, crashed, starting up
    "58": DatabaseUnavailable,  # I/O errors of the server
}


def translated(error: BaseException, doing: str, *, connecting: bool = False) -> DatabaseError:
    """The error of ours that stands for `error`; `doing` says what was under way, and opens the message.

    `connecting`: no statement was sent yet, so a value that is wrong is one of the DSN.
    """
    text = f"{doing}: {summary(error)}"
    if isinstance(
        error, asyncpg.InvalidSQLStatementNameError | asyncpg.DuplicatePreparedStatementError
    ):
        # The driver's own hint is a page. Were it a failed statement, the writer would set its rows aside as wrong.
        text = (
            f"{doing}: prepared statements get lost on the way, as they do behind pgbouncer: "
            "set deployment.database.behind_pgbouncer"
        )
    if _wrong(error):
        return DatabaseRefused(text)
    if isinstance(error, asyncpg.PostgresConnectionError):
        # Raised by the client when the connection is gone; nobody knows how far the statement came.
        return DatabaseUnavailable(text)
    if isinstance(error, asyncpg.PostgresError):
        return _by_state(error.sqlstate or "")(text, safe_to_repeat=True)
    if isinstance(error, _UNENCODABLE) and not connecting:
        return InvalidValue(text, safe_to_repeat=True)
    if isinstance(error, asyncpg.exceptions.ClientConfigurationError | ValueError | OverflowError):
        return BadDsn(f"{text}; expected postgresql://user:password@host:port/name")
    if isinstance(error, TimeoutError):
        return StatementTimeout(f"{doing}: no answer within the time allowed")
    if isinstance(error, ConnectionRefusedError):
        return DatabaseUnavailable(text, safe_to_repeat=True)
    said = str(error) if isinstance(error, asyncpg.InterfaceError) else ""
    if isinstance(error, OSError) or "closed" in said or "closing" in said:
        return DatabaseUnavailable(text)
    return StatementFailed(text)


def _wrong(error: BaseException) -> bool:
    """The way to the server is described wrongly: waiting does not mend it."""
    if isinstance(error, asyncpg.ProtocolViolationError):
        # pgbouncer says everything with this state: its own login, a database that it cannot find, a server that is away.
        return any(said in str(error) for said in ("authentication failed", "does not exist"))
    if isinstance(error, socket.gaierror):
        return (
            error.errno != socket.EAI_AGAIN
        )  # a name that nobody knows, not a resolver that is away
    return isinstance(error, ssl.SSLCertVerificationError) or "rejected SSL upgrade" in str(error)


def exhausted(waited_s: float, size: int) -> PoolExhausted:
    """No connection became free."""
    return PoolExhausted(
        f"no connection of the pool's {size} became free within {waited_s:g} s; "
        "raise max_size, or make the statements shorter",
        safe_to_repeat=True,
    )


def _by_state(state: str) -> type[DatabaseError]:
    for length in (5, 2):
        kind = _BY_SQLSTATE.get(state[:length])
        if kind is not None:
            return kind
    return StatementFailed
