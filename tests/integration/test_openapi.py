"""What /openapi.json says is what the HTTP API does: schemathesis tries both sides of every limit."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tests.cluster_logs import tracebacks

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "what_is_described_is_taken",
    "what_is_not_described_is_refused",
)
ENDLESS = "/admin/events"
CONTEXT = 64
"""Answers without a limit end soon."""


def short_model(model: Path, folder: Path) -> Path:
    """The model with a small context; its other files are links."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": CONTEXT}))
    return folder


async def schemathesis(url: str) -> tuple[int, str]:
    """Exit code and report. Deterministic: the same cases at each run."""
    options = ["--generation-deterministic", "--phases", "coverage,fuzzing", "--max-examples", "8"]
    options += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--request-timeout", "20"]
    # The page's data has no end. One worker: Python 3.11 cannot parse in several threads (its AST module
    # counts recursion for all of them together), which hypothesis does.
    options += ["--exclude-path", ENDLESS, "--workers", "1", "--no-color"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.integration.openapi_checks", "NO_PROXY": "*"},
        cwd=Path(__file__).parents[2],
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 200)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_api_is_as_described(model_path: Path, tmp_path: Path) -> None:
    profile = tmp_path / "fast.csv"
    profile.write_text("tokens,ms\n1,0.2\n4096,2\n")
    model = short_model(model_path, tmp_path / "model")
    config = ClusterConfig(model=str(model), executor="emulated", profile=str(profile))
    async with LocalCluster(config) as cluster:
        code, report = await schemathesis(f"http://{cluster.http_address}")
        assert code == 0, report
        selected = re.search(r"Selected: ([0-9]+)/([0-9]+)\n +Tested: ([0-9]+)", report)
        assert selected is not None, report
        chosen, described, tested = map(int, selected.groups())
        assert (chosen, tested) == (described - 1, described - 1), report
        assert not [child.name for child in cluster.children if child.restart_count]
        assert tracebacks(cluster) == []
