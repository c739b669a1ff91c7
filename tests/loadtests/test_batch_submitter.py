"""Batches over HTTP, as their submitter meets them: turned away, accepted, asked for, ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest

from loadtests.batch_rows import BATCHES_FILE, BatchRow, read_batch_rows
from loadtests.batch_submitter import BatchSubmitter
from reference_impl.messages import RequestTag
from simulation.scenario.compiled_batches import FIRST_BATCH_ID, CompiledBatch
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from tests.loadtests.gevent_server import Request, serving

LIMIT_S = 10.0


def batches(*specs: dict[str, object]) -> tuple[CompiledBatch, ...]:
    return compile_workload(
        load_scenario(
            "demo",
            {
                "deployment.queue.broker": "redis",
                "deployment.database.ledger": "sqlite",
                "workload.batches": [{"requests": 3, "poll_s": 0.05, **spec} for spec in specs],
            },
        )
    ).batches


class Gateway:
    """Refuses first, with these statuses (0: it hangs up); then runs each batch for so many looks."""

    def __init__(self, *refusals: int, looks: int = 2) -> None:
        self.refusals = list(refusals)
        self.looks = looks
        self.bodies: list[tuple[float, str, Any]] = []

    def __call__(self, request: Request, sock: Any) -> bool:
        if request.body:
            key = request.headers["x-api-key"]
            self.bodies.append((monotonic(), key, json.loads(request.body)))
            if self.refusals:
                status = self.refusals.pop(0)
                if status:
                    self.answer(sock, status, {"error": {"type": "x", "message": "no"}})
                return False
            self.answer(sock, 200, self.batch("in_progress"))
            return False
        self.looks -= 1
        self.answer(sock, 200, self.batch("in_progress" if self.looks > 0 else "ended"))
        return False

    def batch(self, status: str) -> dict[str, Any]:
        counts = {"processing": 0, "succeeded": 3, "errored": 0, "canceled": 0, "expired": 0}
        return {"id": "msgbatch_1", "processing_status": status, "request_counts": counts}

    def answer(self, sock: Any, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        head = f"HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)


def submitted(
    folder: Path,
    gateway: Callable[[Request, Any], bool],
    *specs: dict[str, object],
    end_s: float = 5.0,
) -> tuple[dict[int, BatchRow], list[tuple[str, str]]]:
    """The last row of each batch, and what was told of them."""
    with serving(gateway) as url, gevent.Timeout(LIMIT_S):
        some = batches(*specs)
        keys = [f"key {batch.number}" for batch in some]
        submitter = BatchSubmitter(some, keys, url, folder, end_s=end_s)
        submitter.start(monotonic())
        submitter.join()
    lines = (folder / "events-batches.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    return read_batch_rows(folder), [(e["subject"], e["detail"]["state"]) for e in events]


def test_a_batch_is_submitted_when_it_is_due_and_asked_for_until_it_has_ended(
    tmp_path: Path,
) -> None:
    gateway = Gateway(looks=3)
    from_s = monotonic()
    rows, told = submitted(tmp_path, gateway, {"at_s": 0.3})
    ((at, key, body),) = gateway.bodies
    assert at - from_s >= 0.3
    assert key == "key 0"
    tags = [RequestTag.of_custom_id(request["custom_id"]) for request in body["requests"]]
    assert [tag and tag.request_id for tag in tags] == [FIRST_BATCH_ID + n for n in range(3)]
    row = rows[0]
    assert (row.batch_id, row.intended_s, row.refused) == ("msgbatch_1", 0.3, None)
    assert row.ended_s is not None
    assert row.sent_s >= 0.3
    assert row.ended_s >= row.sent_s + 3 * 0.05
    assert told == [("batch 0", "submitted"), ("batch 0", "ended")]


def test_one_that_is_turned_away_is_submitted_again(tmp_path: Path) -> None:
    gateway = Gateway(503, 429, 0)
    rows, told = submitted(tmp_path, gateway, {"at_s": 0.1})
    first, *_, last = [at for at, _, _ in gateway.bodies]
    assert len(gateway.bodies) == 4
    assert last - first >= 3 * 0.05
    assert rows[0].batch_id == "msgbatch_1"
    assert rows[0].sent_s == pytest.approx(0.1, abs=0.3), "the first time"
    assert [state for _, state in told] == [*["refused"] * 3, "submitted", "ended"]


def test_one_that_is_refused_for_good_is_not(tmp_path: Path) -> None:
    gateway = Gateway(400)
    rows, told = submitted(tmp_path, gateway, {})
    assert len(gateway.bodies) == 1
    assert (rows[0].batch_id, rows[0].refused) == ("", "client_error")
    assert told == [("batch 0", "refused")]


def test_the_end_of_the_run_ends_the_waiting(tmp_path: Path) -> None:
    rows, _ = submitted(tmp_path, Gateway(looks=10**6), {}, {"at_s": 60}, end_s=0.5)
    assert set(rows) == {0}, "the other was not due yet"
    assert (rows[0].batch_id, rows[0].ended_s) == ("msgbatch_1", None)


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path) -> None:
    row = b'{"number":0,"intended_s":1.0,"sent_s":1.5}\n'
    (tmp_path / BATCHES_FILE).write_bytes(row + b'{"number":0,"inten')
    assert read_batch_rows(tmp_path) == {0: BatchRow(number=0, intended_s=1.0, sent_s=1.5)}
    assert read_batch_rows(tmp_path / "nowhere") == {}
