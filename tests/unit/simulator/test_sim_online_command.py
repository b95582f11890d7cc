"""`tidepipe sim online` as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.systems import SYSTEMS
from tidepipe.cli.main import app
from tidepipe_common.errors import ConfigError

ARGUMENTS = [
    "sim", "online", "--model-shape", "llama-30b", "--hardware", "L20", "--instances", "2", "--tp", "4",
    "--workload", "sharegpt-like", "--ttft-ms", "5000", "--tpot-ms", "100", "--seconds", "12",
]  # fmt: skip


def test_json_has_the_promised_fields(tmp_path: Path) -> None:
    """All systems at one rate; two at their goodput, with pictures on the side."""
    run = CliRunner().invoke(app, [*ARGUMENTS, "--json", "--fast", "--rate", "0.5"])
    assert run.exit_code == 0, run.output
    results = json.loads(run.stdout.splitlines()[-1])["results"]
    assert [result["policy"] for result in results] == list(SYSTEMS)
    search = ["--policy", "padg,fudg-inter", "--plot", str(tmp_path)]
    run = CliRunner().invoke(app, [*ARGUMENTS, "--json", "--fast", *search])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout.splitlines()[-1])["results"]
    for result in [*results, *found]:
        assert result["attainment"] >= 0.9
        assert set(result["ttft_ms"]) == set(result["tpot_ms"]) == {"p50", "p90", "p99"}
    rates = {result["policy"]: result["goodput_rps"] for result in found}
    assert rates["padg"] > 2 * rates["fudg-inter"] > 0
    assert len(list(tmp_path.glob("*.png"))) == 1


def test_one_rate_with_the_schedulers_themselves_repeats() -> None:
    """Without a search; under bursts; a routing policy by its name."""
    arguments = [
        *ARGUMENTS,
        "--policy",
        "padg,round-robin",
        "--rate",
        "3",
        "--arrivals",
        "gamma:1.5",
        "--json",
    ]
    runs = [CliRunner().invoke(app, arguments) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    report = json.loads(runs[0].stdout)
    assert [result["rate_rps"] for result in report["results"]] == [3, 3]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policy", "best", "unknown policy"),
        ("--arrivals", "sometimes", "unknown arrivals"),
        ("--arrivals", "trace", "no arrival times"),
        ("--ttft-ms", "-5", "positive number of seconds"),
        ("--tp", "1", "leave no room"),
        ("--definition", "mine", "unknown definition"),
    ],
)
def test_mistakes_are_explained(option: str, value: str, message: str) -> None:
    """One line each."""
    run = CliRunner().invoke(app, [*ARGUMENTS, "--policy", "separate", option, value])
    assert isinstance(run.exception, ConfigError)
    assert message in str(run.exception)
