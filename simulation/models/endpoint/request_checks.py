"""What the API checks of a well-typed body; the message begins with the field."""

from __future__ import annotations

import re
from typing import Any, Final

from reference_impl.errors import InvalidRequest
from simulation.models.endpoint.request_types import Block, CountRequest, MessagesRequest

__all__ = ["check_options", "check_prompt"]

_CONTENT_TYPES: Final = frozenset(
    {
        "text",
        "image",
        "document",
        "search_result",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "container_upload",
    }
)
_MAX_MESSAGES: Final = 100_000
_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")


def check_prompt(request: CountRequest) -> None:
    """Messages, system, tools, thinking; raises InvalidRequest."""
    if not request.model:
        raise InvalidRequest("model: String should have at least 1 character")
    if not request.messages:
        raise InvalidRequest("messages: at least one message is required")
    if len(request.messages) > _MAX_MESSAGES:
        raise InvalidRequest(f"messages: at most {_MAX_MESSAGES} messages are allowed")
    if isinstance(request.system, list):
        for i, block in enumerate(request.system):
            _check_block(block, f"system.{i}", text_only=True)
    last = len(request.messages) - 1
    for i, message in enumerate(request.messages):
        # An assistant's last turn may be empty: it is where the answer goes on.
        if not message.content and not (message.role == "assistant" and i == last):
            raise InvalidRequest(f"messages.{i}: all messages must have non-empty content")
        if isinstance(message.content, list):
            for j, block in enumerate(message.content):
                _check_block(block, f"messages.{i}.content.{j}")
    _check_mark(request.cache_control, "cache_control")
    _check_tools(request)
    _check_tool_choice(request)
    _check_thinking(request.thinking)


def _check_block(block: Block, where: str, *, text_only: bool = False) -> None:
    kind = block.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"{where}.type: Field required")
    if kind not in _CONTENT_TYPES or (text_only and kind != "text"):
        raise InvalidRequest(
            f"{where}: Input tag {kind[:60]!r} found using 'type' does not match any of the expected tags"
        )
    if kind == "text":
        text = block.get("text")
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.text: Input should be a valid string")
        if not text:
            raise InvalidRequest(f"{where}.text: text content blocks must be non-empty")
    elif kind == "tool_result" and not isinstance(block.get("tool_use_id"), str):
        raise InvalidRequest(f"{where}.tool_use_id: Field required")
    elif kind == "tool_use" and not isinstance(block.get("input"), dict):
        raise InvalidRequest(f"{where}.input: Input should be a valid dictionary")
    _check_mark(block.get("cache_control"), f"{where}.cache_control")


def _check_mark(mark: Any, where: str) -> None:
    if mark is None:
        return
    if not isinstance(mark, dict) or mark.get("type") != "ephemeral":
        raise InvalidRequest(f"{where}.type: Input should be 'ephemeral'")
    if mark.get("ttl", "5m") not in ("5m", "1h"):
        raise InvalidRequest(f"{where}.ttl: Input should be '5m' or '1h'")


def _check_tools(request: CountRequest) -> None:
    names = set()
    for i, tool in enumerate(request.tools or ()):
        where = f"tools.{i}"
        kind = tool.get("type")
        if kind is not None and not isinstance(kind, str):
            raise InvalidRequest(f"{where}.type: Input should be a valid string")
        if kind in (None, "custom"):
            _check_own_tool(tool, where)
        name = tool.get("name")
        if name is not None:
            if not isinstance(name, str) or name in names:
                raise InvalidRequest("tools: Tool names must be unique strings.")
            names.add(name)
        _check_mark(tool.get("cache_control"), f"{where}.cache_control")


def _check_own_tool(tool: Block, where: str) -> None:
    name = tool.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"
        )
    if not isinstance(tool.get("input_schema"), dict):
        raise InvalidRequest(f"{where}.input_schema: Field required")
    if tool["input_schema"].get("type") != "object":
        raise InvalidRequest(f"{where}.input_schema.type: Input should be 'object'")


def _check_tool_choice(request: CountRequest) -> None:
    choice = request.tool_choice
    if choice is None:
        return
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise InvalidRequest("tool_choice.type: Input should be 'auto', 'any', 'tool' or 'none'")
    names = [tool["name"] for tool in request.tools or () if "name" in tool]
    if kind in ("any", "tool") and not names:
        raise InvalidRequest("tool_choice: may only be specified while providing tools")
    if kind == "tool" and choice.get("name") not in names:
        raise InvalidRequest(
            f"tool_choice.name: Tool {str(choice.get('name'))[:60]!r} not found in provided tools"
        )


def _check_thinking(thinking: Block | None) -> None:
    if thinking is None:
        return
    kind = thinking.get("type")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise InvalidRequest(
            "thinking.type: Input should be 'enabled', 'disabled', 'adaptive' or 'between_tools'"
        )
    if thinking.get("display") not in (None, "summarized", "omitted"):
        raise InvalidRequest("thinking.display: Input should be 'summarized' or 'omitted'")
    if kind == "enabled":
        budget = thinking.get("budget_tokens")
        if type(budget) is not int:
            raise InvalidRequest("thinking.budget_tokens: Field required")
        if budget < 1024:
            raise InvalidRequest(
                "thinking.budget_tokens: Input should be greater than or equal to 1024"
            )


def check_options(request: MessagesRequest) -> None:
    """What a create has beside its prompt; raises InvalidRequest."""
    if request.max_tokens < 1:
        raise InvalidRequest("max_tokens: Input should be greater than or equal to 1")
    for name in ("temperature", "top_p"):
        value = getattr(request, name)
        if value is not None and not 0.0 <= value <= 1.0:
            raise InvalidRequest(f"{name}: Input should be between 0 and 1")
    if request.top_k is not None and request.top_k < 0:
        raise InvalidRequest("top_k: Input should be greater than or equal to 0")
    for i, stop in enumerate(request.stop_sequences or ()):
        if not stop.strip():
            raise InvalidRequest(
                f"stop_sequences.{i}: each stop sequence must contain non-whitespace"
            )
    if request.thinks:
        _check_thinking_fits(request)
    layout = (request.output_config or {}).get("format")
    if layout is not None and (
        not isinstance(layout, dict)
        or layout.get("type") != "json_schema"
        or not isinstance(layout.get("schema"), dict)
    ):
        raise InvalidRequest("output_config.format: Input should be a json_schema with a schema")


def _check_thinking_fits(request: MessagesRequest) -> None:
    budget = (request.thinking or {}).get("budget_tokens")
    if type(budget) is int and budget >= request.max_tokens:
        raise InvalidRequest("max_tokens: must be greater than thinking.budget_tokens")
    if (request.tool_choice or {}).get("type") in ("any", "tool"):
        raise InvalidRequest("thinking: may not be enabled when tool_choice forces tool use")
