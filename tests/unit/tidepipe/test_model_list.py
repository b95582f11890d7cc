"""`tidepipe --version` and `tidepipe model list`: what is here, and what could be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tidepipe_common.version import tidepipe_version


def tidepipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as users call it."""
    command = [sys.executable, "-m", "tidepipe.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_what_is_here_and_what_could_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEPIPE_CACHE", str(tmp_path))
    assert tidepipe("--version").stdout == f"tidepipe {tidepipe_version()}\n"
    assert "not here; `tidepipe model pull smollm2-135m` downloads" in tidepipe("model", "list").stdout
    mine = tmp_path / "models" / "mine"
    mine.mkdir(parents=True)
    (mine / "config.json").write_text("{}")
    (mine / "model.safetensors").write_bytes(b"x" * 98)
    (tmp_path / "models" / "torn").mkdir()
    report = json.loads(tidepipe("model", "list", "--json").stdout)
    assert report["cache"] == str(tmp_path / "models")
    here = {one["name"]: (one["pulled"], one["path"], one["bytes"]) for one in report["models"]}
    assert here == {
        "smollm2-135m": (False, None, 0),
        "mine": (True, str(mine), 100),
        "torn": (False, str(tmp_path / "models" / "torn"), 0),
    }


def test_output_that_has_no_room_is_one_sentence() -> None:
    command = [sys.executable, "-m", "tidepipe.cli.main", "model", "list", "--json"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert ended.returncode == 3
    assert ended.stderr == "error: cannot write the output: No space left on device\n"
