"""Two tabs on Locust's own page: times to first token and lag, and outcomes.

They stand beside Locust's table of requests, not in it: a first token counted as a request would double the rate shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Final

from flask import Response, request
from locust.web import WebUI

from loadtests.metrics import ClientMetrics

__all__ = ["add_tabs", "duration_rows", "outcome_rows"]

TIMES: Final = "twinload-times"
OUTCOMES: Final = "twinload-outcomes"

_LABELS: Final = {
    "latency_s": "Latency from the intended start",
    "service_s": "Service time from the sending",
    "ttft_s": "First token from the intended start",
    "ttft_service_s": "First token from the sending",
    "tpot_s": "Time per output token",
    "lag_s": "Dispatch lag of the injector",
}
_QUANTILES: Final = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


def duration_rows(metrics: ClientMetrics) -> list[dict[str, Any]]:
    """One row a duration, in milliseconds for people; "" where nothing was measured."""
    rows = []
    for order, (name, label) in enumerate(_LABELS.items()):
        histogram = metrics.durations[name]
        row: dict[str, Any] = {"name": f"{order + 1}. {label}", "count": histogram.count}
        for key, q in _QUANTILES.items():
            value_s = histogram.quantile(q)
            row[key] = "" if math.isnan(value_s) else f"{value_s * 1e3:.1f}"
        rows.append(row)
    return rows


def outcome_rows(metrics: ClientMetrics) -> list[dict[str, Any]]:
    """One row an outcome class, then the counts."""
    rows: list[dict[str, Any]] = [
        {"name": f"outcome: {name}", "count": count}
        for name, count in sorted(metrics.outcomes.items())
    ]
    rows += [
        {"name": f"total: {name.replace('_', ' ')}", "count": count}
        for name, count in metrics.counts.items()
    ]
    rows.append({"name": "total: cost at list prices ($)", "count": f"{metrics.cost_usd:.4f}"})
    return rows


def add_tabs(web_ui: WebUI, metrics: Callable[[], ClientMetrics]) -> None:
    """Register the tabs; `metrics()` gives the counts to show at each refresh."""
    assert web_ui.app is not None
    web_ui.template_args |= {
        "extended_tabs": [
            {"title": "Tokens and lag", "key": TIMES},
            {"title": "Outcomes", "key": OUTCOMES},
        ],
        "extended_tables": [
            {
                "key": TIMES,
                "structure": [
                    {"key": "name", "title": "Duration (ms)"},
                    {"key": "count", "title": "# Measured"},
                    *({"key": key, "title": key} for key in _QUANTILES),
                ],
            },
            {
                "key": OUTCOMES,
                "structure": [
                    {"key": "name", "title": "What"},
                    {"key": "count", "title": "# Counted"},
                ],
            },
        ],
    }

    @web_ui.app.after_request
    def extend_statistics(response: Response) -> Response:
        if request.path.endswith("/stats/requests") and response.is_json:
            now = metrics()
            document = response.get_json() | {
                "extended_stats": [
                    {"key": TIMES, "data": duration_rows(now)},
                    {"key": OUTCOMES, "data": outcome_rows(now)},
                ]
            }
            response.set_data(json.dumps(document))
        return response
