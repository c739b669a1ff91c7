"""A gateway that starts while its database is away accounts for requests as in an outage. In virtual time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from reference_impl.database.accounting import Accounting
from reference_impl.database.connect import build_accounting
from reference_impl.database.entries import to_nanousd
from reference_impl.database.errors import DatabaseRefused, SchemaTooNew
from reference_impl.deployment import DatabaseSpec
from reference_impl.errors import Rejected
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import RequestTrace, SystemEvent
from simulation import kernel
from simulation.models.database import DatabaseServer, Outage, VirtualLedger, VirtualPool

SPEC = DatabaseSpec(ledger="postgres", flush_s=1.0)
LIMIT_USD = 5.0


async def answer(_call: Call, _emit: Emit | None) -> Completion:
    return Completion(Usage(1000, 100))


async def ask(accounting: Accounting, number: int) -> None:
    call = Call(
        request_id=number,
        model="claude-haiku-4-5",
        max_tokens=100,
        stream=False,
        trace=RequestTrace(),
        tenant="k",
        input_tokens=1000,
    )
    await accounting.recorded(call, None, lambda c, e: accounting.forwarded(c, e, answer))


class Started:
    """A server that is away, and the accounting of a gateway that starts meanwhile. Made on the running loop."""

    def __init__(self, outage: Outage, folder: Path, spec: DatabaseSpec = SPEC) -> None:
        self.server = DatabaseServer()
        self.server.fail(outage)
        self.events: list[SystemEvent] = []
        store = VirtualLedger(self.server, VirtualPool(self.server, 4, min_size=2))
        self.accounting = build_accounting(
            store,
            spec,
            source="g",
            wall_clock=lambda: 0.0,
            folder=folder,
            on_event=self.events.append,
        )


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_requests_are_answered_and_written_with_budgets_set_when_the_database_comes(
    tmp_path: Path, outage: Outage
) -> None:
    async def main() -> None:
        gateway = Started(outage, tmp_path)
        await gateway.accounting.start({"k": LIMIT_USD})
        assert asyncio.get_running_loop().time() <= 5.0, "one attempt to connect"
        for number in range(20):
            await ask(gateway.accounting, number)
            await asyncio.sleep(0.5)
        assert (tmp_path / "g.spill").stat().st_size > 0, "a kill would lose nothing older"
        gateway.server.recover()
        await gateway.accounting.writer.drained()
        rows = list(gateway.server.ledger._entries.values())
        assert [row.entry_id for row in rows] == [f"g/{n}/{n}" for n in range(20)]
        (budget,) = await gateway.server.ledger.budgets()
        assert budget.limit_nanousd == to_nanousd(LIMIT_USD)
        assert budget.spent_nanousd == sum(row.cost_nanousd for row in rows) > 0
        assert [event.detail["state"] for event in gateway.events] == ["away", "back"]
        await gateway.accounting.aclose()
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())


def test_budgets_that_are_not_set_yet_refuse_where_the_deployment_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        spec = SPEC.model_copy(update={"budget_outage": "refuse"})
        gateway = Started("refusing", tmp_path, spec)
        await gateway.accounting.start({"k": LIMIT_USD})
        with pytest.raises(Rejected, match="budgets cannot be checked") as caught:
            await ask(gateway.accounting, 1)
        assert caught.value.status == 503
        gateway.server.recover()
        await gateway.accounting.writer.drained()
        await ask(gateway.accounting, 2)
        await gateway.accounting.aclose()
        outcomes = [row.outcome for row in gateway.server.ledger._entries.values()]
        assert outcomes == ["rejected", "ok"]

    kernel.run(main())


def test_a_gateway_that_ends_before_the_database_comes_leaves_its_rows_to_the_next(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        gateway = Started("refusing", tmp_path)
        await gateway.accounting.start({"k": LIMIT_USD})
        await ask(gateway.accounting, 1)
        await gateway.accounting.aclose()
        assert [path.name for path in tmp_path.iterdir()] == ["g.spill"]
        gateway.server.recover()
        store = VirtualLedger(gateway.server, VirtualPool(gateway.server, 4))
        heir = build_accounting(store, SPEC, source="h", wall_clock=lambda: 0.0, folder=tmp_path)
        await heir.start({"k": LIMIT_USD})
        await heir.aclose()
        assert list(gateway.server.ledger._entries) == ["g/0/1"]
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())


def test_a_database_that_will_not_do_stops_the_start_and_is_told_of_when_it_shows_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Newer(VirtualLedger):
        async def open(self) -> None:
            await super().open()
            raise SchemaTooNew("the ledger's schema has version 99")

    async def main() -> None:
        server = DatabaseServer()

        def made(source: str) -> Accounting:
            store = Newer(server, VirtualPool(server, 1, min_size=1))
            return build_accounting(
                store, SPEC, source=source, wall_clock=lambda: 0.0, folder=tmp_path
            )

        at_once = made("a")
        with pytest.raises(DatabaseRefused, match="version 99"):
            await at_once.start({})
        await at_once.aclose()
        server.fail("refusing")
        later = made("b")
        await later.start({})
        await ask(later, 1)
        server.recover()
        await asyncio.sleep(10)
        await later.aclose()
        assert [path.name for path in tmp_path.iterdir()] == ["b.spill"]

    kernel.run(main())
    told = [record.message for record in caplog.records if "version 99" in record.message]
    assert told == [
        "ledger: the database refuses, rows are kept: the ledger's schema has version 99"
    ], "once, not at every attempt"
