"""A batch of two thousand by the official SDK, through gateway, RabbitMQ, instances and PostgreSQL, against the mock, while one
instance is killed: complete, correct, and debited once."""

from __future__ import annotations

from pathlib import Path

import pytest

from reference_impl.database.connect import DSN_VARIABLE
from reference_impl.queues.connect import URL_VARIABLE
from tests.faults.queues.batch_system import CONCURRENCY, kill_an_instance, play, scenario
from tests.servers.postgres import fresh_database
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

REQUESTS = 2_000


@pytest.mark.xdist_group("rabbitmq")
def test_a_batch_of_two_thousand_survives_the_death_of_an_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = fresh_database()
    monkeypatch.setenv(DSN_VARIABLE, dsn)
    monkeypatch.setenv(URL_VARIABLE, shared_rabbitmq_url())
    system = scenario("rabbitmq", unique_prefix())
    seen = play(system, tmp_path, dsn, REQUESTS, [(REQUESTS // 3, kill_an_instance)])
    assert seen.wasted <= CONCURRENCY, "what one killed instance had in hand, and no more"
    assert seen.started > {"instance-1", "instance-2"}, "another was begun in its place"
