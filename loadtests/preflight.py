"""What is looked at before a live run begins: what is found wrong here is told, and nothing was started or written."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from loadtests.locust_processes import SwarmOptions
from loadtests.servers import wanted_servers
from loadtests.target import BadTarget
from loadtests.target_probe import probe
from reference_impl.live.services.server_process import ServiceUnavailable
from simulation.scenario.manifest import check_unused
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import CompiledWorkload

__all__ = ["SwarmRefused", "check", "free_page_port"]

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})


class SwarmRefused(ValueError):
    """What is asked for cannot be run as it stands: one line for people."""


def check(
    scenario: Scenario,
    workload: CompiledWorkload,
    out: Path,
    options: SwarmOptions,
    target_url: str | None,
    api_key: str,
) -> SwarmOptions:
    """The options as they suit the target. Raises SwarmRefused."""
    _check_options(options)
    try:
        check_unused(out)
    except FileExistsError as error:
        raise SwarmRefused(str(error)) from None
    if target_url is None:
        _check_servers(scenario)
        return options
    if workload.batches:
        raise SwarmRefused(
            "workload.batches: what becomes of a batch is read from the ledger, which a target does not show; run against "
            "the scenario's own system (no --target), or leave batches out (--set workload.batches=[])"
        )
    _check_target(target_url, api_key)
    tags = options.tags and urlsplit(target_url).hostname in LOOPBACK
    return msgspec.structs.replace(options, tags=tags)


def free_page_port(options: SwarmOptions) -> int:
    """The port of the page: the one asked for, if it is free, or a free one. Raises SwarmRefused."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.web_port))
        except OSError as error:
            raise SwarmRefused(
                f"port {options.web_port} for the page: {error.strerror}; name another, or 0 for a free one"
            ) from None
        port: int = probe.getsockname()[1]
    return port


def _check_options(options: SwarmOptions) -> None:
    for field, least in (("workers", 0), ("client_retries", 0), ("max_in_flight", 1)):
        value = getattr(options, field)
        if value < least:
            raise SwarmRefused(f"{field}: expected {least} or more, got {value}")
    if not options.request_timeout_s > 0:
        raise SwarmRefused(
            f"request_timeout_s: expected more than 0, got {options.request_timeout_s}"
        )


def _check_servers(scenario: Scenario) -> None:
    for server in wanted_servers(scenario.deployment):
        try:
            server.find()
        except ServiceUnavailable as error:
            raise SwarmRefused(server.missing(error)) from None


def _check_target(url: str, api_key: str) -> None:
    try:
        probe(url, api_key)
    except BadTarget as error:
        raise SwarmRefused(str(error)) from None
