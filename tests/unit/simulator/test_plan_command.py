"""`tidepipe plan` as users call it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.scheduler.policies.catalog import Knobs
from simulator import planner
from simulator.cluster_spec import ClusterSpec
from simulator.goodput import Figures, Question, Run
from tidepipe.cli.main import app
from tidepipe_common.errors import ConfigError, TidePipeError

REQUESTS = [{"prompt": [1] * (20 + 9 * (i % 5)), "out": 3 + i % 4} for i in range(40)]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A question with few answers, over requests that are short, in runs of few of them."""
    real = planner.measure

    def measure(
        system: str, knobs: Knobs, spec: ClusterSpec, question: Question, rate: float, run: Run
    ) -> Figures:
        return real(system, knobs, spec, replace(question, least_requests=50), rate, run)

    monkeypatch.setattr(planner, "measure", measure)
    load = tmp_path / "load.json"
    load.write_text(json.dumps(REQUESTS))
    return [
        "plan", "--model-shape", "llama2-13b", "--hardware", "L20:1x2", "--workload", str(load),
        "--jobs", "1", "--seconds", "1",
    ]  # fmt: skip


TARGETS = ["--ttft-ms", "2000", "--tpot-ms", "100", "--policy", "hybrid"]


def test_the_cheapest_is_named_with_what_starts_it(arguments: list[str], tmp_path: Path) -> None:
    """One device is enough; the picture and the compose file are made; the same again, the same answer."""
    more = [*TARGETS, "--rate", "20", "--json", "--plot", str(tmp_path), "--write", str(tmp_path / "c.yaml")]
    run = CliRunner().invoke(app, [*arguments, *more])
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout.splitlines()[-1])
    best = report["best"]
    assert (best["devices"], best["instances"], best["nodes"]) == (1, 1, 1)
    assert best["confirmed"]
    assert best["attainment"] >= 0.9
    assert best["margin"] >= 1
    assert best["goodput_rps"] == pytest.approx(20 * best["margin"])
    assert set(best["ttft_ms"]) == {"p50", "p90", "p99"}
    assert report["complete"]
    assert report["commands"].startswith("tidepipe up --model MODEL")
    assert all(one["why"] for one in report["pruned"])
    assert [one["devices"] for one in report["frontier"]] == sorted(
        one["devices"] for one in report["frontier"]
    )
    assert (tmp_path / "frontier.png").stat().st_size > 1000
    assert "worker-0-0" in (tmp_path / "c.yaml").read_text()


def test_a_rate_that_nothing_holds_ends_with_the_most(arguments: list[str], tmp_path: Path) -> None:
    write = tmp_path / "c.yaml"
    run = CliRunner().invoke(app, [*arguments, *TARGETS, "--rate", "600", "--write", str(write)])
    assert run.exit_code == 1, run.output
    assert "nothing is written" in run.stderr
    assert not write.exists()
    assert "nothing of these devices holds it; most:" in run.stdout.replace("\n", " ")
    assert max(map(len, run.stdout.splitlines())) <= 80


def test_what_cannot_be_started_is_shown_and_not_written(arguments: list[str], tmp_path: Path) -> None:
    write = tmp_path / "c.yaml"
    more = ["--policy", "fudg-intra", "--rate", "3", "--write", str(write)]
    run = CliRunner().invoke(app, [*arguments, *TARGETS, *more])
    assert isinstance(run.exception, ConfigError)
    assert "cheapest: " in run.stdout
    assert not write.exists()


def test_a_trace_that_is_short_answers_for_what_it_is_long_enough_for(
    arguments: list[str], tmp_path: Path
) -> None:
    """Rates beyond that do not end the search; a rate beyond that is refused before it."""
    trace = tmp_path / "trace.jsonl"
    entries = [
        {"timestamp": 50 * i, "input_length": 40, "output_length": 4, "hash_ids": [i]} for i in range(420)
    ]
    trace.write_text("\n".join(map(json.dumps, entries)))
    asked = [*arguments, *TARGETS, "--workload", str(trace), "--json"]
    run = CliRunner().invoke(app, [*asked, "--rate", "20"])
    assert run.exit_code == 0, run.output
    best = json.loads(run.stdout.splitlines()[-1])["best"]
    assert 1 <= best["margin"] <= 21.1
    run = CliRunner().invoke(app, [*asked, "--rate", "430"])
    assert "has 420 requests, and 430 are needed" in str(run.exception)


def test_loose_targets_are_no_reason_to_leave_anything_out(arguments: list[str]) -> None:
    """With all the time for a token, short rounds that hold little memory are still there."""
    more = ["--ttft-ms", "2000", "--tpot-ms", "1e6", "--policy", "hybrid", "--rate", "20", "--json"]
    run = CliRunner().invoke(app, [*arguments, *more])
    assert run.exit_code == 0, run.output


def test_time_that_is_up_is_said(arguments: list[str]) -> None:
    run = CliRunner().invoke(
        app, [*arguments, *TARGETS, "--rate", "3", "--budget-s", "1", "--seconds", "900"]
    )
    assert run.exit_code in (0, 1), run.output
    assert "time" in run.stdout


def test_offline_compares_tensors_with_pipelines(arguments: list[str]) -> None:
    """All ways are there or left out by their bound, and it says which kind wins."""
    run = CliRunner().invoke(app, [*arguments[:-2], "--offline", "--policy", "all"])
    assert run.exit_code == 0, run.output
    assert "wins" in run.stdout
    assert "tidepipe batch IN.jsonl -o OUT.jsonl" in run.stdout
    run = CliRunner().invoke(app, [*arguments[:-2], "--offline", "--json", "--requests", "20"])
    report = json.loads(run.stdout.splitlines()[-1])
    times = [one["makespan_s"] for one in report["results"]]
    assert times == sorted(times)
    assert all(one["bound_s"] >= times[0] for one in report["pruned"])
    assert all(one["bound_s"] <= one["makespan_s"] for one in report["results"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--hardware", "L20"], "NAME:NODESxGPUS"),
        (["--hardware", "L20:0x8"], "NAME:NODESxGPUS"),
        (["--hardware", "L20:1x65"], "NAME:NODESxGPUS"),
        (["--hardware", "M9:1x2"], "unknown hardware"),
        (["--model-shape", "gpt-9"], "unknown model"),
        (["--policy", "best"], "unknown policy"),
        (["--max-total", "10"], "no request fits"),
        (["--ttft-ms", "-5"], "positive number of seconds"),
        (["--hardware", "L20:1x1", "--model-shape", "qwen2-72b"], "leave no room"),
        (["--offline"], "is not for --offline"),
        (["--write", "nowhere/c.yaml"], "in a folder that is there"),
        (["--model-shape", "SHAPE"], "so must its shape"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], more: list[str], message: str, tmp_path: Path) -> None:
    """One sentence each."""
    if "SHAPE" in more:
        shape = tmp_path / "shape.json"
        shape.write_text('{"shape": 5}')
        more = [str(shape) if one == "SHAPE" else one for one in more]
    run = CliRunner().invoke(app, [*arguments, *TARGETS, "--rate", "3", *more])
    assert isinstance(run.exception, ConfigError)
    assert message in str(run.exception)


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "1e7"])
def test_rates_that_are_none(arguments: list[str], rate: str) -> None:
    run = CliRunner().invoke(app, [*arguments, *TARGETS, "--rate", rate])
    assert run.exit_code == 2
    assert not isinstance(run.exception, TidePipeError)
