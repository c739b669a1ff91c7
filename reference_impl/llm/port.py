"""The port to whatever answers a call: an endpoint, an instance, a processor, a model in virtual time.

One shape for every hop (endpoint, instance, processor), so that each can be wrapped by, or replaced with, any other. It is
push-style: the callee awaits `emit` for each chunk of a stream and returns when the answer is complete. So a slot that a
caller holds is held to the last byte, a cancellation unwinds the whole path at once, and no generator is left to be
finalised.
"""

from __future__ import annotations

from typing import Protocol

from reference_impl.messages import Call, Completion, Emit

__all__ = ["MessagesPort"]


class MessagesPort(Protocol):
    """Something that answers Messages requests."""

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        """Answer `call`; with `call.stream`, await `emit` for every chunk as it arrives.

        Raises a `reference_impl.errors.ServiceError`: `StreamBroken` once a content chunk was emitted, any other before.
        A cancellation stops the work and frees what it held.
        """
        ...

    async def aclose(self) -> None:
        """Release connections; the port is not used afterwards."""
        ...
