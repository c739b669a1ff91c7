"""Private servers that outlive the command: started, found again, stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from reference_impl.live.services.registry import services_down, services_status, services_up
from reference_impl.queues.connect import connect_queue, queue_replay, queue_status
from reference_impl.queues.port import QueuedTask
from tests.servers.valkey import require_valkey


# The servers are meant to outlive whoever started them; `subprocess` wonders about that.
@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_service_starts_once_serves_a_queue_and_keeps_its_data(tmp_path: Path) -> None:
    require_valkey()

    async def body() -> None:
        try:
            (state,) = await services_up(tmp_path, ("valkey",))
            assert await services_up(tmp_path, ("valkey",)) == [state], "it runs already"
            queue = connect_queue(state.url, levels=2)
            await queue.enqueue(QueuedTask("t", "unknown", {}))
            assert await queue.dequeue(5) is not None
            await queue.reject("t", "no handler")
            await queue.close()
            assert await services_down(tmp_path) == ["valkey"]
            assert not state.is_running
            (again,) = await services_up(tmp_path, ("valkey",))
            status, dead = await queue_status(again.url, levels=2)
            assert (status.dead, dead[0].reason) == (1, "no handler")
            assert await queue_replay(again.url, levels=2) == 1
        finally:
            await services_down(tmp_path, delete_data=True)
        assert services_status(tmp_path) == []

    asyncio.run(body())
