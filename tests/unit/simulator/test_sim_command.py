"""`tidepipe sim offline` as users call it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.setups import POLICIES
from tidepipe.cli.main import app
from tidepipe_common.errors import ConfigError

ARGUMENTS = [
    "sim", "offline", "--model-shape", "llama2-13b", "--hardware", "L20", "--stages", "4",
    "--workload", "sharegpt-like", "--requests", "120", "--seed", "3", "--max-total", "2048",
]  # fmt: skip


def test_json_has_the_promised_fields_and_repeats_by_seed() -> None:
    """All policies; two runs print the same line."""
    runs = [CliRunner().invoke(app, [*ARGUMENTS, "--json"]) for _ in range(2)]
    assert [run.exit_code for run in runs] == [0, 0]
    assert runs[0].stdout == runs[1].stdout
    report = json.loads(runs[0].stdout)
    names = [result["policy"] for result in report["results"]]
    assert names == list(POLICIES)
    for result in report["results"]:
        assert {"settings", "total_tokens_per_s", "makespan_s", "phase_switches", "preemptions"} <= set(
            result
        )
        assert 0 < result["busy"] <= 1
        assert result["bubbles"] == 1 - result["busy"]
        # A single stage has nothing to balance; without decode phases there is nothing to forecast.
        assert (result["imbalance"] == 0) is result["policy"].startswith("tp-")
        assert (result["forecast_error"] is not None) is (result["policy"] in ("auto", "td-pipe"))
        assert (result["steals"] > 0) is (result["policy"] in ("auto", "td-pipe"))
        if not result["policy"].startswith("tp-"):
            assert result["output_tokens_per_s"] <= report["bound"]


def test_a_profile_a_shape_file_and_pictures(tmp_path: Path) -> None:
    """What planners bring along; and the table for people."""
    shape = {"num_hidden_layers": 8, "hidden_size": 1024, "num_attention_heads": 8, "intermediate_size": 2816}
    (tmp_path / "config.json").write_text(json.dumps({**shape, "vocab_size": 32000}))
    (tmp_path / "profile.csv").write_text("tokens,ms\n1,4\n128,6\n256,9\n2048,70\n")
    arguments = [*ARGUMENTS, "--policy", "auto,hybrid", "--predictor", "noise:0.5"]
    arguments += ["--profile", str(tmp_path / "profile.csv"), "--plot", str(tmp_path / "pictures")]
    arguments[3] = str(tmp_path / "config.json")
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "hybrid" in run.stdout
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--policy", "best", "unknown policy"),
        ("--predictor", "magic", "unknown predictor"),
        ("--hardware", "abacus", "unknown hardware"),
        ("--model-shape", "gpt-9", "unknown model"),
        ("--workload", "/no/such/file", "cannot read"),
    ],
)
def test_mistakes_are_explained(option: str, value: str, message: str) -> None:
    """A wrong name lists the right ones."""
    run = CliRunner().invoke(app, [*ARGUMENTS, option, value])
    assert isinstance(run.exception, ConfigError)
    assert message in str(run.exception)
