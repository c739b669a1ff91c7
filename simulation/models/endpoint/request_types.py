"""The bodies of create and count_tokens, typed as far as the mock reads them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = ["Block", "CountRequest", "MessagesRequest", "PromptPart"]

Block = dict[str, Any]


class PromptPart(msgspec.Struct):
    """One turn of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class CountRequest(msgspec.Struct, kw_only=True):
    """What a prompt consists of: the body of count_tokens, and the prompt half of a create."""

    model: str
    messages: list[PromptPart]
    system: str | list[Block] | None = None
    tools: list[Block] | None = None
    tool_choice: Block | None = None
    thinking: Block | None = None
    cache_control: Block | None = None
    output_config: Block | None = None
    speed: Literal["standard", "fast"] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The body of a create. Fields that the mock has no use for are typed as loosely as is safe."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: Block | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Any = None
    diagnostics: Block | None = None
    inference_geo: str | None = None

    @property
    def thinks(self) -> bool:
        """Whether the request asks for thinking."""
        return self.thinking is not None and self.thinking.get("type") != "disabled"
