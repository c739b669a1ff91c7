"""The prompt and the scope of a Messages request: what is compared by meaning, and what must be equal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from reference_impl.caches.semantic.smart_cache import Scope

__all__ = ["prompt_and_scope"]

# Fields that are named in the scope, or do not change the answer.
_APART: Final = frozenset({"model", "system", "messages", "stream", "metadata", "service_tier"})


def prompt_and_scope(document: Mapping[str, Any], tenant: str) -> tuple[str, Scope] | None:
    """The text of the last user message and everything else of the request, or None where that is not just text.

    `document` is the decoded body. Requests that end with an image, a document, a tool's result or the assistant's own
    words have no prompt to compare; they are for the exact cache. Tools, temperature, max_tokens and the like are
    parameters of the scope, the earlier messages its conversation.
    """
    messages = document.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    last = messages[-1]
    if not isinstance(last, Mapping) or last.get("role") != "user":
        return None
    prompt = _text(last.get("content"))
    if not prompt:
        return None
    return prompt, Scope(
        tenant=tenant,
        model=str(document.get("model", "")),
        system=document.get("system", ""),
        parameters={name: value for name, value in document.items() if name not in _APART},
        before=messages[:-1],
    )


def _text(content: object) -> str:
    """A message's content as text; "" where it is anything but text."""
    if isinstance(content, str):
        return content.strip()
    if not isinstance(content, list):
        return ""
    parts = []
    for block in content:
        if not isinstance(block, Mapping) or block.get("type") != "text":
            return ""
        parts.append(str(block.get("text", "")))
    return "\n".join(parts).strip()
