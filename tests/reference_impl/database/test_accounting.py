"""What a client says of its own request changes nothing that it pays. In virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest

from reference_impl.database.accounting import Accounting, most_nanousd
from reference_impl.database.connect import build_accounting
from reference_impl.database.entries import to_nanousd
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.deployment import DatabaseSpec
from reference_impl.messages import TAG_HEADER, Call, Completion, Emit, RequestTag, Usage
from reference_impl.metrics import ServiceMetrics
from reference_impl.prices import load_prices
from reference_impl.service import MessagesEndpoint, gateway_app
from simulation import kernel
from simulation.models.http_network import AsgiTransport
from simulation.models.network import Link
from simulation.scenario.distributions import Constant
from tests.reference_impl.calls import make_call

MODEL = "claude-haiku-4-5"  # $1 per million input tokens
TOKENS = 100_000
COST = to_nanousd(0.10)
BODY = msgspec.json.encode(
    {
        "model": MODEL,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "abc" * TOKENS}],
    }
)
# As small as a tag can make a request.
TAG = RequestTag(1).encode()


class Answered:
    """Receives one answer."""

    status = 0

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status

    async def data(self, data: bytes) -> None:
        """Of no interest."""


class Front:
    """The endpoint of a gateway with a ledger, whose requests cost $0.10 each; it keeps the calls that it forwarded."""

    def __init__(self, *, trust_tags: bool = False) -> None:
        self.store = MemoryLedger()
        self.accounting: Accounting = build_accounting(
            self.store, DatabaseSpec(ledger="memory"), source="g", wall_clock=lambda: 0.0
        )
        self.calls: list[Call] = []
        metrics = ServiceMetrics()
        endpoint = MessagesEndpoint(
            self, metrics, itertools.count(), {"key": "k"}, trust_tags=trust_tags
        )
        app = gateway_app(
            endpoint, metrics, lambda: True, on_heartbeat=lambda _: False, control_token="t"
        )
        self._transport = AsgiTransport(app, Link("test", Constant(value=0.01), 0))

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        return await self.accounting.recorded(
            call, emit, lambda c, e: self.accounting.forwarded(c, e, self._answer)
        )

    async def aclose(self) -> None:
        await self.accounting.aclose()

    async def post(self, tag: str) -> int:
        answered = Answered()
        await self._transport.post(
            "/v1/messages", {"x-api-key": "key", TAG_HEADER: tag}, BODY, answered
        )
        return answered.status

    async def _answer(self, call: Call, _emit: Emit | None) -> Completion:
        self.calls.append(call)
        return Completion(Usage(TOKENS, 0), body=b"{}")


@pytest.mark.parametrize("trust_tags", [False, True])
def test_requests_that_all_carry_the_same_tag_are_booked_and_limited_one_by_one(
    trust_tags: bool,
) -> None:
    async def main() -> None:
        front = Front(trust_tags=trust_tags)
        await front.accounting.start({"k": 1.0})
        statuses = [await front.post(TAG) for _ in range(100)]
        statuses += await asyncio.gather(*(front.post(TAG) for _ in range(200)))
        await front.aclose()
        passed = Counter(statuses)
        assert set(passed) == {200, 402}
        rows = list(front.store._entries.values())
        assert len(rows) == 300
        (budget,) = await front.store.budgets()
        assert budget.spent_nanousd == sum(row.cost_nanousd for row in rows) == passed[200] * COST
        assert 0.5 < budget.spent_nanousd / budget.limit_nanousd <= 1.0
        assert all(row.entry_id.endswith("/1") for row in rows), "the tag's id, to join by"

    kernel.run(main())


def test_the_counts_of_a_tag_are_heeded_only_where_tags_are_trusted() -> None:
    async def main(trust_tags: bool) -> Call:
        front = Front(trust_tags=trust_tags)
        await front.accounting.start({})
        assert await front.post(RequestTag(7, 200, 3, 10**17, 9).encode()) == 200
        await front.aclose()
        return front.calls[0]

    stranger, ours = (kernel.run(main(trust_tags)) for trust_tags in (False, True))
    assert stranger.tag == RequestTag(7, 200), "what rows are joined by"
    assert (stranger.request_id, stranger.attempt) == (7, 200)
    assert stranger.input_tokens == len(BODY) // 4
    assert ours.tag == RequestTag(7, 200, 3, 10**17, 9)
    assert ours.input_tokens == 10**17


def test_no_count_lowers_a_reservation_below_the_estimate_from_the_size() -> None:
    prices = load_prices()

    def most(**fields: object) -> int:
        return most_nanousd(prices, make_call(size_bytes=300_000, **fields))

    assert most(tag=RequestTag(1)) == most(input_tokens=99_999, tag=RequestTag(1)) == most()
    assert most(input_tokens=200_000, tag=RequestTag(1)) > most()
