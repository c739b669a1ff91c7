"""The API keys that a swarm sends: one secret, and from it one key per tenant, however many there are."""

from __future__ import annotations

from typing import Final

__all__ = ["API_KEY_VARIABLE", "tenant_key"]

# The secret travels in the environment: a command line is seen by every user of a machine.
API_KEY_VARIABLE: Final = "TWINLOAD_API_KEY"


def tenant_key(secret: str, tenant: int) -> str:
    """The key of tenant number `tenant` of a workload."""
    return f"{secret}.{tenant}"
