"""compose.yaml offers the servers of `twinload services`, with the same promises, and to this machine alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from reference_impl.live.services import postgres, rabbitmq, valkey
from reference_impl.live.services.commands import settings_of
from reference_impl.live.services.registry import SERVICES

FILE = Path(__file__).resolve().parents[1] / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())


def config_of(service: str) -> str:
    """The text of the one file that is mounted into a service."""
    (mounted,) = COMPOSE["services"][service]["configs"]
    text: str = COMPOSE["configs"][mounted["source"]]["content"]
    return text


def test_it_offers_the_same_servers() -> None:
    assert set(COMPOSE["services"]) == set(SERVICES)


@pytest.mark.parametrize("service", SERVICES)
def test_every_port_is_of_the_loopback_and_every_server_keeps_its_data(service: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in COMPOSE["services"][service]["ports"])
    (volume,) = COMPOSE["services"][service]["volumes"]
    assert volume.partition(":")[0] in COMPOSE["volumes"]
    assert COMPOSE["services"][service].get("network_mode") is None


def test_valkey_is_as_durable_and_has_as_many_databases() -> None:
    program, *options = COMPOSE["services"]["valkey"]["command"]
    assert program == "valkey-server"
    expected = {**valkey.DURABLE, "databases": str(valkey.DATABASES)}
    assert dict(zip(options[::2], options[1::2], strict=True)) == {
        f"--{name}": value for name, value in expected.items()
    }


def test_rabbitmq_lets_a_task_be_held_as_long() -> None:
    assert f"consumer_timeout = {rabbitmq.CONSUMER_TIMEOUT_MS}" in config_of("rabbitmq").split("\n")


def test_postgres_has_the_same_database_with_what_the_advisor_reads() -> None:
    service = COMPOSE["services"]["postgres"]
    assert service["environment"]["POSTGRES_DB"] == postgres.DATABASE
    assert service["command"] == ["postgres", "-c", *postgres.SETTINGS]
    assert config_of("postgres").strip() == "CREATE EXTENSION pg_stat_statements;"


def test_the_settings_in_its_head_name_the_ports_that_it_binds() -> None:
    lines = [line for line in FILE.read_text().splitlines() if line.startswith("#   export ")]
    named = dict(line.removeprefix("#   export ").split("=", 1) for line in lines)
    bound = {
        name: service["ports"][0].split(":")[1] for name, service in COMPOSE["services"].items()
    }
    expected = settings_of(
        {
            "postgres": f"postgresql://postgres@127.0.0.1:{bound['postgres']}/{postgres.DATABASE}",
            "valkey": f"redis://127.0.0.1:{bound['valkey']}/0",
            "rabbitmq": f"amqp://guest:guest@127.0.0.1:{bound['rabbitmq']}/",
        }
    )
    assert named == expected
    assert {urlsplit(url).hostname for url in named.values()} == {"127.0.0.1"}
