"""The error tree of the database, and the translation of what drivers raise.

What matters to a caller is whether the same work may succeed later (`DatabaseUnavailable`), was certainly not done
(`safe_to_repeat`), or is wrong and stays wrong (`StatementFailed`, `DatabaseRefused`). Messages are one line and never hold a
password.
"""

from __future__ import annotations

import re

__all__ = [
    "BadDsn",
    "DatabaseError",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "DiskFull",
    "InvalidValue",
    "PoolExhausted",
    "SchemaTooNew",
    "ServerTooOld",
    "StatementFailed",
    "StatementTimeout",
    "masked",
    "one_line",
    "summary",
]


class DatabaseError(Exception):
    """Root of the tree.

    Attributes:
        safe_to_repeat: the work was certainly not done, so doing it again cannot do it twice.
    """

    def __init__(self, message: str, *, safe_to_repeat: bool = False) -> None:
        super().__init__(message)
        self.safe_to_repeat = safe_to_repeat


class DatabaseUnavailable(DatabaseError):
    """No answer, or not now: refused, lost, shutting down, too busy. Later it may work."""


class PoolExhausted(DatabaseUnavailable):
    """Every connection of the pool was in use for as long as the caller would wait."""


class DiskFull(DatabaseUnavailable):
    """The server cannot store more."""


class StatementTimeout(DatabaseUnavailable):
    """The statement took longer than allowed and was cancelled."""


class DatabaseRefused(DatabaseError):
    """The server is there and will not let us in: wrong password, no such database, no permission."""


class BadDsn(DatabaseRefused, ValueError):
    """The DSN cannot be understood."""


class ServerTooOld(DatabaseRefused):
    """The server's version lacks what the ledger needs."""


class SchemaTooNew(DatabaseRefused):
    """A newer version of this program has migrated the schema; this one must not touch it."""


class StatementFailed(DatabaseError):
    """The server executed the statement and said no: a missing table, an error of its own."""


class InvalidValue(StatementFailed):
    """A value is to blame, and nothing else: out of range, not text, against a constraint. It stays wrong."""


# Up to the last `@`, wherever it stands: a password may hold any character, and hiding too much of a wrong DSN harms nobody.
_PASSWORD_IN_URL = re.compile(r"(://[^/:]*):.*@", re.DOTALL)
_PASSWORD_IN_WORD = re.compile(r"(://[^/:\s]*):\S*@")
_PASSWORD_IN_PAIRS = re.compile(r"(?i)(password\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)")


def one_line(text: object) -> str:
    """`text` on one line, without the password of a DSN in it."""
    line = " ".join(str(text).split())
    return _PASSWORD_IN_PAIRS.sub(r"\1***", _PASSWORD_IN_WORD.sub(r"\1:***@", line))


def masked(dsn: str) -> str:
    """`dsn`, and nothing else, with its password replaced by `***`."""
    return _PASSWORD_IN_PAIRS.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1:***@", dsn))


def summary(error: BaseException) -> str:
    """What `error` says on one line; its kind where it says nothing."""
    return one_line(error) or type(error).__name__
