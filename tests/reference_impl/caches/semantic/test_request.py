"""Which requests have a prompt to compare, and what belongs to their scope."""

from __future__ import annotations

from typing import Any

import pytest

from reference_impl.caches.semantic.request import prompt_and_scope

REQUEST: dict[str, Any] = {
    "model": "m",
    "max_tokens": 100,
    "system": "Be brief.",
    "messages": [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
        {"role": "user", "content": " How do I bake a pie? "},
    ],
}


def scope_of(**changes: Any) -> tuple[str, str]:
    found = prompt_and_scope(REQUEST | changes, "tenant")
    assert found is not None
    return found[0], found[1].digest()


def test_the_prompt_is_the_text_of_the_last_user_message() -> None:
    blocks = [{"type": "text", "text": "How do I"}, {"type": "text", "text": "bake a pie?"}]
    assert scope_of()[0] == "How do I bake a pie?"
    messages = [*REQUEST["messages"][:2], {"role": "user", "content": blocks}]
    assert scope_of(messages=messages) == ("How do I\nbake a pie?", scope_of()[1])


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "n"},
        {"system": "Be long."},
        {"system": [{"type": "text", "text": "Be brief."}]},
        {"max_tokens": 200},
        {"temperature": 0.5},
        {"tools": [{"name": "search"}]},
        {"messages": REQUEST["messages"][2:]},
    ],
)
def test_whatever_changes_the_answer_changes_the_scope(changes: dict[str, Any]) -> None:
    assert scope_of(**changes)[1] != scope_of()[1]


@pytest.mark.parametrize(
    "changes", [{"stream": True}, {"metadata": {"user_id": "u"}}, {"service_tier": "auto"}]
)
def test_what_does_not_change_the_answer_leaves_the_scope(changes: dict[str, Any]) -> None:
    assert scope_of(**changes) == scope_of()


def test_tenants_have_their_own_scopes() -> None:
    one, other = (prompt_and_scope(REQUEST, tenant) for tenant in ("a", "b"))
    assert one is not None
    assert other is not None
    assert one[1].digest() != other[1].digest()


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "text",
        ["text"],
        [{"role": "assistant", "content": "The pie"}],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "image", "source": {}}]}],
        [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "tool_result"}]}],
        [{"role": "user", "content": None}],
    ],
)
def test_a_request_that_does_not_end_with_mere_text_has_no_prompt(messages: object) -> None:
    assert prompt_and_scope(REQUEST | {"messages": messages}, "tenant") is None
