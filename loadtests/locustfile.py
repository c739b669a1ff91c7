"""The swarm: replays a compiled workload, open loop, from Locust.

    locust -f loadtests/locustfile.py --host http://127.0.0.1:8080 --workload FILE --run-dir DIR --headless

`twinload swarm` does this and everything around it. One injector per worker sends all requests of its share; Locust's number of
users is the number of injectors. Importing locust replaces parts of the standard library, so neither asyncio servers nor
the simulation ever run in this process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Locust has put the working directory first; a user's own `simulation/` or `reports/` there must not win over ours.
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import locust
import numpy as np
from locust import User, runners, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import WorkerRunner
from locust.web import WebUI

from loadtests.conductor import Conductor
from loadtests.injector import InjectorOptions
from loadtests.injector_host import InjectorHost
from loadtests.keys import API_KEY_VARIABLE, tenant_key
from loadtests.target import BadTarget, parse_target
from loadtests.web_tab import add_tabs
from simulation.scenario.workload import CompiledWorkload

# Workers report every 3 s by default, which is long beside a run of half a minute.
runners.WORKER_REPORT_INTERVAL = 1.0

_events: Any = locust.events  # its decorators are untyped
_hosts: dict[Environment, InjectorHost] = {}


class Injector(User):
    """Locust's view of an injector: one user per worker, which sends the whole share of that worker."""

    @task
    def replay(self) -> None:
        _hosts[self.environment].replay()
        raise StopUser


def add_options(parser: LocustArgumentParser, **_event: Any) -> None:
    def option(name: str, **settings: Any) -> None:
        parser.add_argument(f"--{name}", include_in_web_ui=False, **settings)

    # Text, not Path: the master sends its options to the workers.
    option("workload", help="compiled workload to replay")
    option("run-dir", help="folder for rows and statuses")
    option("horizon-s", type=float, default=None, help="no request that is due later is sent")
    option("drain-s", type=float, default=30.0, help="how long answers are awaited afterwards")
    option(
        "max-in-flight", type=int, default=10_000, help="bound on requests in flight, per worker"
    )
    option("request-timeout-s", type=float, default=600.0, help="bound on one attempt")
    option("client-retries", type=int, default=0, help="attempts beyond the first")
    option("start-delay-s", type=float, default=2.0, help="from the start to instant 0")
    option("no-tags", action="store_true", help="do not send x-twinload-request")
    option("key-per-tenant", action="store_true", help="append .K to the key of tenant K")
    option("seed", type=int, default=0, help="for the jitter of client retries")


def set_up(environment: Environment, web_ui: WebUI | None, **_event: Any) -> None:
    """Read the inputs before anything starts; bad input is one line and exit status 2."""
    options = environment.parsed_options
    assert options is not None
    try:
        workload, folder = _inputs(environment, options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    is_worker = isinstance(environment.runner, WorkerRunner)
    injectors = options.expect_workers if options.master else 1
    Injector.fixed_count = injectors
    conductor = None
    if not is_worker:
        conductor = Conductor(
            environment,
            folder,
            start_delay_s=options.start_delay_s,
            stay=not options.headless,
        )
        if web_ui is not None:
            add_tabs(web_ui, lambda: conductor.metrics)
    if not options.master:
        _hosts[environment] = InjectorHost(
            environment,
            workload,
            folder,
            _injector_options(options, workload),
            metrics=conductor.metrics if conductor else None,
        )


def _inputs(environment: Environment, options: Any) -> tuple[CompiledWorkload, Path]:
    if options.workload is None or options.run_dir is None:
        raise ValueError("--workload FILE and --run-dir DIR are needed")
    if not environment.host:
        raise ValueError("--host http://HOST:PORT is needed")
    try:
        parse_target(environment.host)
    except BadTarget as error:
        raise ValueError(f"--host: {error}") from None
    folder = Path(options.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return CompiledWorkload.load(options.workload), folder


def _injector_options(options: Any, workload: CompiledWorkload) -> InjectorOptions:
    horizon_s = options.horizon_s
    if horizon_s is None:
        batches_s = [batch.at_s for batch in workload.batches]
        horizon_s = float(np.nanmax([*workload.intended_s, *batches_s], initial=0.0)) + 1e-6
    return InjectorOptions(
        horizon_s=horizon_s,
        drain_s=options.drain_s,
        max_in_flight=options.max_in_flight,
        request_timeout_s=options.request_timeout_s,
        retries=options.client_retries,
        tags=not options.no_tags,
        seed=options.seed,
        api_keys=_api_keys(options, workload),
    )


def _api_keys(options: Any, workload: CompiledWorkload) -> tuple[str, ...]:
    """The key from the environment, for all or made one for each tenant."""
    key = os.environ.get(API_KEY_VARIABLE, "")
    if options.key_per_tenant:
        return tuple(tenant_key(key, k) for k in range(len(workload.all_tenants)))
    return (key,)


_events.init_command_line_parser.add_listener(add_options)
_events.init.add_listener(set_up)
