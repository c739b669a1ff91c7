"""What a live process is told when it starts: one JSON file, checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reference_impl.deployment import DeploymentSpec

__all__ = ["ConfigError", "ProcessConfig", "usable_folders"]


class ConfigError(ValueError):
    """The process cannot start as it was told to: one line for people."""


@contextlib.contextmanager
def usable_folders() -> Iterator[None]:
    """Files of a process are opened in this block: one that cannot be is a ConfigError."""
    try:
        yield
    except OSError as error:
        where = error.filename or "run_dir or ledger_dir"
        raise ConfigError(
            f"{where}: {error.strerror or error}; run_dir and ledger_dir must be folders that can be written"
        ) from error


class ProcessConfig(BaseModel):
    """What a process needs to know; a file of JSON.

    Attributes:
        deployment: what exists.
        upstream_url: base URL of the Messages endpoint. The key for it is read from ANTHROPIC_API_KEY, never from here.
        run_dir: where traces, station samples and events go; None: nowhere.
        seed: for boot times and jitter.
        port: 0 takes a free one.
        forward_tags: believe what `x-twinload-request` says of sizes, and pass it on to the endpoint. Only for mocks.
        tenants: API key -> tenant of the gateway's clients; empty accepts everybody.
        ledger_dir: where the ledger's spill files are, and its SQLite file unless TWINLOAD_DATABASE names one; None: `run_dir`.
        control_url, control_token: where an instance sends its heartbeats, and the proof that it may.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: DeploymentSpec = DeploymentSpec()
    upstream_url: str
    run_dir: Path | None = None
    seed: int = 0
    port: int = Field(0, ge=0, le=65535)
    forward_tags: bool = False
    tenants: dict[str, str] = {}
    sample_interval_s: float = Field(1.0, gt=0)
    ledger_dir: Path | None = None
    control_url: str = ""
    control_token: str = ""

    @classmethod
    def read(cls, path: Path) -> ProcessConfig:
        """Raises ConfigError that names the file and the field."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ConfigError(f"{path}: {field}: {first['msg']}") from error
