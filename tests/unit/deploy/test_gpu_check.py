"""The check for GPUs, where there is none: it says so, and a part that goes wrong costs that part alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deploy.gpu_check import __main__ as check


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu-check"])
    assert check.main() == check.NO_GPU
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "nothing was tried" in sentence


def test_what_goes_wrong_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_part(name: str, settings: dict[str, Any], limit_s: float, logs: Path) -> dict[str, Any]:
        right = name != "graphs"
        return {"right": right, "seconds": 1.0, **({} if right else {"why": "no graph was captured"})}

    out = tmp_path / "report.json"
    monkeypatch.setattr(check, "run_part", run_part)
    monkeypatch.setattr(sys, "argv", ["gpu-check", "--device", "cpu", "-o", str(out)])
    assert check.main() == check.WRONG
    report = json.loads(out.read_text())
    assert [*report["parts"]] == [*check.LIMITS_S] and report["device"] == "cpu"
    assert report["parts"]["graphs"]["why"] == "no graph was captured"
    monkeypatch.setattr(sys, "argv", ["gpu-check", "--device", "cpu", "-o", str(out), "--only", "attention"])
    assert check.main() == check.RIGHT


def test_a_part_that_ends_or_stays_away_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(check.sys, "executable", str(program))

    def says(script: str) -> dict[str, Any]:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return check.run_part("four bits", {}, check.LEAST_S, tmp_path)

    assert says('echo \'{"right": true, "x": 1}\'')["x"] == 1
    assert "ended with code 7" in says("exit 7")["why"]
    assert "ended by SIGSEGV" in says("kill -SEGV $$")["why"]
    assert not says("echo nothing")["right"]
    monkeypatch.setattr(check, "LEAST_S", 0.1)
    assert "not done after" in says("exec sleep 30")["why"]
    assert check.run_part("four bits", {}, 0.0, tmp_path)["why"] == "no time was left for it"
