"""How many tokens a prompt has, and which of its prefixes can be cached.

No tokenizer: a token is four bytes of UTF-8 text (the usual rule of thumb for English), an image 1,600 tokens, each turn
three tokens of framing. The same count serves create and count_tokens. A tag's count wins over it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from simulation.models.endpoint.prompt_cache import PromptPrefix
from simulation.models.endpoint.request_types import CountRequest

__all__ = ["BYTES_PER_TOKEN", "count_prompt", "prompt_prefixes"]

BYTES_PER_TOKEN: Final = 4
_FRAMING_TOKENS: Final = 3
_IMAGE_TOKENS: Final = 1_600
# The real API looks back this many blocks from a mark for a prefix that it knows.
_LOOK_BACK: Final = 20


def _text_tokens(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // BYTES_PER_TOKEN)


def _block_tokens(block: dict[str, Any]) -> int:
    kind = block.get("type")
    if kind == "text":
        return _text_tokens(block["text"])
    if kind == "image":
        return _IMAGE_TOKENS
    content = block.get("content")
    if kind == "tool_result" and isinstance(content, str):
        return _text_tokens(content) + _FRAMING_TOKENS
    return -(-len(msgspec.json.encode(block)) // BYTES_PER_TOKEN)


def count_prompt(request: CountRequest) -> int:
    """Input tokens of a request: tools, system and messages."""
    total = 0
    for tool in request.tools or ():
        total += -(-len(msgspec.json.encode(tool)) // BYTES_PER_TOKEN)
    if request.system is not None:
        total += (
            _text_tokens(request.system)
            if isinstance(request.system, str)
            else sum(map(_block_tokens, request.system))
        )
    for message in request.messages:
        total += _FRAMING_TOKENS
        if isinstance(message.content, str):
            total += _text_tokens(message.content)
        else:
            total += sum(map(_block_tokens, message.content))
    return total


def _blocks(request: CountRequest) -> Iterator[tuple[bytes, int, Any]]:
    """Every cacheable block in the order of the prompt: (bytes that identify it, tokens, cache_control)."""
    for tool in request.tools or ():
        mark = tool.get("cache_control")
        bare = msgspec.json.encode({k: v for k, v in tool.items() if k != "cache_control"})
        yield b"tool" + bare, -(-len(msgspec.json.encode(tool)) // BYTES_PER_TOKEN), mark
    if isinstance(request.system, str):
        yield (
            b"system" + request.system.encode("utf-8", "surrogatepass"),
            _text_tokens(request.system),
            None,
        )
    else:
        for block in request.system or ():
            bare = msgspec.json.encode({k: v for k, v in block.items() if k != "cache_control"})
            yield b"system" + bare, _block_tokens(block), block.get("cache_control")
    for message in request.messages:
        role = message.role.encode()
        if isinstance(message.content, str):
            # A plain string and one text block are the same prompt.
            bare = msgspec.json.encode({"type": "text", "text": message.content})
            yield role + bare, _text_tokens(message.content) + _FRAMING_TOKENS, None
            continue
        for i, block in enumerate(message.content):
            bare = msgspec.json.encode({k: v for k, v in block.items() if k != "cache_control"})
            framing = 0 if i else _FRAMING_TOKENS
            yield role + bare, _block_tokens(block) + framing, block.get("cache_control")


def prompt_prefixes(request: CountRequest, scope: bytes) -> list[PromptPrefix]:
    """The prefixes that the prompt cache may read or write, from short to long; none without a mark.

    `scope` names what must not share a cache: account and model.
    """
    blocks = list(_blocks(request))
    marks = [mark for _, _, mark in blocks]
    if request.cache_control is not None and blocks:
        marks[-1] = request.cache_control  # the top-level mark stands for one on the last block
    marked = [i for i, mark in enumerate(marks) if mark is not None]
    if not marked:
        return []
    digest = hashlib.blake2b(scope, digest_size=16)
    tokens = 0
    prefixes = []
    for i, (identity, size, _) in enumerate(blocks[: marked[-1] + 1]):
        digest.update(len(identity).to_bytes(8, "big"))
        digest.update(identity)
        tokens += size
        mark = marks[i]
        if mark is None and not any(i <= m <= i + _LOOK_BACK for m in marked):
            continue
        prefixes.append(
            PromptPrefix(
                digest.digest(),
                tokens,
                mark=mark is not None,
                long=isinstance(mark, dict) and mark.get("ttl") == "1h",
            )
        )
    return prefixes
