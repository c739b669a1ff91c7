"""Who may call: API keys and the accounts that they belong to.

Without a key file every key is accepted but those that begin with `sk-ant-invalid`; each is an account of its own, named by
a digest, so that no key reaches a log.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from loadtests.mock.exchange import Exchange
from reference_impl.errors import AuthenticationFailed, PermissionDenied
from simulation.scenario.endpoint import Spec

__all__ = ["KeyEntry", "KeyFileError", "Keys", "load_keys"]


class KeyFileError(ValueError):
    """The key file cannot be used: one line."""


class KeyEntry(Spec):
    """What a key stands for. `blocked` keys are known but may do nothing (403)."""

    account: Annotated[str, Field(min_length=1)]
    state: Literal["active", "blocked"] = "active"


_entries = TypeAdapter(dict[str, KeyEntry | str])


def load_keys(path: Path) -> dict[str, KeyEntry]:
    """Read a YAML file `key: account` or `key: {account: ..., state: blocked}`; raises KeyFileError."""
    try:
        entries = _entries.validate_python(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise KeyFileError(f"key file {path}: not YAML") from error  # its text would show keys
    except ValidationError as error:
        raise KeyFileError(
            f"key file {path}: {error.error_count()} entries are not "
            "'key: account' or 'key: {account: ..., state: active|blocked}'"
        ) from error
    return {k: KeyEntry(account=v) if isinstance(v, str) else v for k, v in entries.items()}


class Keys:
    """Tells a request's account from its headers."""

    def __init__(self, entries: dict[str, KeyEntry] | None = None) -> None:
        self._entries = entries
        self._names: dict[str, str] = {}

    def account(self, exchange: Exchange) -> str:
        """The account; raises AuthenticationFailed or PermissionDenied. `x-api-key` wins over `authorization`."""
        key = exchange.header(b"x-api-key")
        if not key:
            scheme, _, token = exchange.header(b"authorization").partition(" ")
            if scheme.lower() == "bearer":
                key = token.strip()
        if not key:
            raise AuthenticationFailed("x-api-key header is required")
        if self._entries is not None:
            entry = self._entries.get(key)
            if entry is None:
                raise AuthenticationFailed("invalid x-api-key")
            if entry.state == "blocked":
                raise PermissionDenied("Your API key does not have permission to use this resource")
            return entry.account
        if key.startswith("sk-ant-invalid"):
            raise AuthenticationFailed("invalid x-api-key")
        name = self._names.get(key)
        if name is None:
            digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=6).hexdigest()
            name = f"key-{digest}"
            if len(self._names) < 10_000:
                self._names[key] = name
        return name
