"""`tidepipe up`: real processes with the real model, and clear refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

import tidepipe

pytestmark = [pytest.mark.model, pytest.mark.timeout(180)]


def tidepipe_command(*arguments: str) -> list[str]:
    """The command as users call it."""
    return [sys.executable, "-m", "tidepipe.cli.main", *arguments]


def gone(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that are still there after so many seconds."""
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return list(alive)


@pytest.fixture(autouse=True)
def logs_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters that fail or are killed leave their logs where pytest cleans up."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_cluster_serves_and_leaves_nothing_behind(
    model_path: Path, end: signal.Signals, tmp_path: Path
) -> None:
    journals, trace = tmp_path / "journals", tmp_path / "trace.json"
    command = tidepipe_command("up", "--model", str(model_path), "--stages", "2")
    command += ["--journal", str(journals), "--trace", str(trace)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    processes: list[psutil.Process] = []
    try:
        assert supervisor.stdout is not None
        line = supervisor.stdout.readline()
        ready = re.fullmatch(r"ready http=(\S+:\d+) grpc=(\S+:\d+)\n", line)
        assert ready, line
        processes = psutil.Process(supervisor.pid).children(recursive=True)
        assert len(processes) == 5
        if end is signal.SIGINT:
            check_it_answers(http=ready[1], grpc=ready[2])
        os.kill(supervisor.pid, end)
        code = supervisor.wait(20)
        assert code == (0 if end is signal.SIGINT else -signal.SIGKILL)
        assert gone(processes, within_s=20) == []
        if end is signal.SIGINT:
            check_what_it_left(journals / "instance-0.jsonl", trace)
    finally:
        for process in [*gone(processes, within_s=0), *([supervisor] if supervisor.poll() is None else [])]:
            process.kill()
        supervisor.communicate()


def check_it_answers(http: str, grpc: str) -> None:
    """Both doors, the terminal client and the status."""
    with tidepipe.connect(grpc) as client:
        answer = client.generate("The capital of France is", temperature=0, max_tokens=4)
        assert "Paris" in answer.text
    body = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 5}
    request = urllib.request.Request(
        f"http://{http}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        assert json.load(reply)["usage"]["completion_tokens"] <= 5
    typed = run("generate", "The capital of France is", "--no-chat", "--max-tokens", "4", "--endpoint", grpc)
    assert typed.returncode == 0
    assert "Paris" in typed.stdout
    status = json.loads(run("admin", "status", "--json", "--endpoint", grpc).stdout)
    stages = status["instances"][0]["status"]["stages"]
    assert stages[0]["layer_end"] == stages[1]["layer_begin"]
    assert "decode" in run("admin", "status", "--endpoint", grpc).stdout

    (phases,) = json.loads(run("admin", "phases", "--json", "--endpoint", grpc).stdout)["instances"]
    assert phases["recent_switches"][-1]["reason"]
    assert len(phases["stages"]) == 2
    assert "forecast peak" in run("admin", "phases", "--endpoint", grpc).stdout


def check_what_it_left(journal: Path, trace: Path) -> None:
    """A journal whose replay decides the same, and a trace with every stage's steps."""
    replayed = run("sim", "journal", str(journal), "--json")
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert json.loads(replayed.stdout)["live"]["differing"] == 0
    steps = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {step["tid"] for step in steps} == {1, 2}
    assert sum(step["args"]["tokens"] for step in steps if step["tid"] == 1) >= 12


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        tidepipe_command(*arguments), capture_output=True, text=True, timeout=60, check=False
    )


def test_wrong_use_ends_at_once_with_one_clear_line(model_path: Path, tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt"
    corrupt.mkdir()
    for file in model_path.iterdir():
        (corrupt / file.name).write_bytes(file.read_bytes()[:1000])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        model = ("--model", str(model_path))
        for arguments, code, message in (
            ((*model, "--grpc-port", str(port)), 2, f"cannot listen on 127.0.0.1:{port}"),
            ((*model, "--http-port", str(port)), 2, f"cannot listen on 127.0.0.1:{port}"),
            (("--model", "no-such-model"), 2, "no-such-model"),
            ((*model, "--quantization", "int3"), 2, "quantization: "),
            ((*model, "--policy", "magic"), 2, "policy"),
            (("--model", str(corrupt)), 2, "could not start: "),
        ):
            began = time.monotonic()
            result = run("up", *arguments)
            assert (result.returncode, result.stdout) == (code, ""), result.stderr
            assert message in result.stderr
            on_the_way = ("starting", "processes ready")
            lines = [
                line for line in result.stderr.splitlines() if not any(word in line for word in on_the_way)
            ]
            assert len(lines) == 1, result.stderr
            assert time.monotonic() - began < 30
