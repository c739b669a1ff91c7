"""Fitting a profile to measurements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulation.kernel import run
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.models.profile_fit import FitError, fit_profile
from simulation.scenario.endpoint import load_profile
from simulation.scenario.random_streams import generator
from tests.simulation.models.endpoint.calls import Records, offered, tagged


def _write(path: Path, columns: dict[str, np.ndarray]) -> Path:
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in rows)]
    path.write_text("\n".join(lines))
    return path


def test_what_the_endpoint_produced_is_fitted_back(tmp_path: Path) -> None:
    records = Records()

    async def main() -> None:
        endpoint = LLMEndpoint(load_profile("sonnet-class"), 2, observer=records.observe)
        calls = [
            (0.0, tagged(i, tokens_in=100 + 37 * (i % 200), out=20 + i % 300)) for i in range(3_000)
        ]
        await offered(endpoint, calls)

    run(main())
    path = _write(
        tmp_path / "calls.csv",
        {
            "input_tokens": np.array([r.input_tokens for r in records]),
            "output_tokens": np.array([r.output_tokens for r in records]),
            "ttft_s": np.array([r.drawn_first_token_s for r in records]),
            "duration_s": np.array([r.drawn_endpoint_s for r in records]),
        },
    )
    fitted = fit_profile(path)
    assert fitted.prefill_s_per_token == pytest.approx(1e-4, rel=0.15)
    service = fitted.profile.service
    assert service.kind == "provider"
    assert service.ttft_s.kind == service.tokens_per_s.kind == "lognormal"
    assert service.ttft_s.median == pytest.approx(1.2, rel=0.05)
    assert service.ttft_s.sigma == pytest.approx(0.45, rel=0.06)
    assert service.tokens_per_s.median == pytest.approx(65, rel=0.02)
    assert service.tokens_per_s.sigma == pytest.approx(0.2, rel=0.06)
    assert not fitted.profile.synthetic
    assert "3000 rows" in fitted.summary()


def test_where_no_family_fits_the_measured_distribution_is_kept(tmp_path: Path) -> None:
    n = 2_000
    luck = generator(1, "test")
    two_modes = np.where(luck.random(n) < 0.5, luck.normal(0.3, 0.01, n), luck.normal(3.0, 0.1, n))
    path = _write(
        tmp_path / "modes.csv",
        {
            "input_tokens": np.full(n, 100),
            "output_tokens": np.full(n, 11),
            "ttft_s": two_modes,
            "duration_s": two_modes + 0.1,
        },
    )
    fitted = fit_profile(path)
    ttft = fitted.fits[0]
    assert ttft.family == "empirical"
    assert min(ttft.distances.values()) > 0.05
    assert abs(ttft.p50_error) < 0.2
    assert abs(ttft.p95_error) < 0.01
    assert "measured distribution kept" in fitted.summary()


def test_a_fitted_profile_can_be_written_and_loaded(tmp_path: Path) -> None:
    n = 50
    luck = generator(2, "test")
    rows = [
        {"input_tokens": 10, "output_tokens": 20, "ttft_s": t, "duration_s": t + 1}
        for t in luck.lognormal(0.0, 0.3, n).tolist()
    ]
    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    fitted = fit_profile(path, name="mine")
    written = tmp_path / "mine.json"
    written.write_text(fitted.profile.model_dump_json())
    assert load_profile(written) == fitted.profile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "1 rows; at least 20 are needed"),
        ("input_tokens,output_tokens,ttft_s\n" + "1,2,3\n" * 20, "row 1: duration_s: expected"),
        (
            "input_tokens,output_tokens,ttft_s,duration_s\n" + "1,2,3,4\n" * 20 + "1,2,3,1\n",
            "row 21: duration_s is less than ttft_s",
        ),
        (
            "input_tokens,output_tokens,ttft_s,duration_s\n" + "1,2,3,4\n" * 19 + "1,2,nan,4\n",
            "row 20: ttft_s: nan is not",
        ),
    ],
)
def test_measurements_that_cannot_be_used_are_named(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(FitError, match=message):
        fit_profile(path)
