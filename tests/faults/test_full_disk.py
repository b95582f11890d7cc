"""The disk under the batch store fills up: uploads are refused, answers wait, nothing is lost.

Needs root to mount a small file system; skipped without.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from launcher.config import ClusterConfig
from launcher.local import LocalCluster

pytestmark = [pytest.mark.model, pytest.mark.timeout(240)]

LINES, TOKENS = 200, 40
DISK_BYTES = 8 << 20
WAIT_S = 90.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tidepipe-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, timeout=20)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    try:
        assert folder.stat().st_dev != tmp_path.stat().st_dev, "what is to be filled is not what was mounted"
        yield folder
    finally:
        ended = subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, text=True, timeout=20)
        if ended.returncode:  # its memory comes back with what is in it
            print(f"still mounted: {ended.stderr.strip()}")
            shutil.rmtree(folder, ignore_errors=True)


def fill(ballast: Path) -> None:
    """Until not a byte more fits."""
    size = 1 << 16
    with ballast.open("ab", buffering=0) as file:
        while size:
            try:
                file.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                size //= 2
            assert file.tell() <= DISK_BYTES, "it is not the small file system that is being filled"


def requests() -> bytes:
    body = {"prompt": "go", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    return b"".join(json.dumps({**line, "custom_id": f"c{n}"}).encode() + b"\n" for n in range(LINES))


async def upload(http: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})


async def batch_once(http: httpx.AsyncClient, batch: dict[str, Any], count: int) -> dict[str, Any]:
    """The batch when so many of its requests are answered."""
    async with asyncio.timeout(WAIT_S):
        while batch["request_counts"]["completed"] < count or (
            count == LINES and not batch["output_file_id"]
        ):
            await asyncio.sleep(0.05)
            try:
                answer = await http.get(f"/v1/batches/{batch['id']}")
            except httpx.TransportError:  # the router is on its way back
                continue
            if answer.status_code == 200:
                batch = answer.json()
            assert batch["status"] not in ("failed", "expired"), batch
    return batch


def assert_full(answer: httpx.Response, why: str) -> None:
    assert answer.status_code == 507, answer.text
    assert answer.json()["error"]["code"] == "insufficient_storage"
    assert why in answer.json()["error"]["message"]


async def test_a_full_disk_loses_nothing(
    model_path: Path, tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = disk / "tmp"
    spool.mkdir()
    monkeypatch.setenv("TMPDIR", str(spool))  # of the router: tempfile here has made up its mind
    config = ClusterConfig(
        model=str(model_path),
        executor="emulated",
        data_dir=str(disk / "data"),
        run_dir=str(tmp_path / "run"),
        max_running=4,
    )
    ballast = disk / "ballast"
    async with (
        LocalCluster(config) as cluster,
        httpx.AsyncClient(base_url=f"http://{cluster.http_address}", timeout=30, trust_env=False) as http,
    ):
        stored = await upload(http, requests())
        assert stored.status_code == 200, stored.text
        wanted = {
            "input_file_id": stored.json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "24h",
        }
        batch = (await http.post("/v1/batches", json=wanted)).json()
        old = (await upload(http, b"x" * 900_000)).json()
        batch = await batch_once(http, batch, 1)

        fill(ballast)
        await asyncio.sleep(1.0)
        fill(ballast)  # what the store gave back in between
        assert_full(await upload(http, b"x" * 900_000), "cannot store")
        assert_full(await upload(http, b"x" * 3_000_000), "TMPDIR")
        # The remedy that it names works on a full disk, too.
        assert (await http.delete(f"/v1/files/{old['id']}")).status_code == 200
        assert (await http.get("/v1/files")).status_code == 200
        assert (await upload(http, b"x" * 300_000)).status_code == 200
        fill(ballast)
        # What stores nothing goes on.
        answer = await http.post("/v1/completions", json={"prompt": "go", "max_tokens": 3})
        assert answer.status_code == 200, answer.text
        assert (await http.get("/v1/files")).status_code == 200
        stuck = (await http.get(f"/v1/batches/{batch['id']}")).json()
        assert stuck["status"] == "in_progress"
        assert stuck["request_counts"]["completed"] < LINES, "the batch was over before the disk was full"

        router = next(child for child in cluster.children if child.name == "router")
        assert router.restart_count == 0
        assert router.pid is not None
        os.kill(router.pid, signal.SIGKILL)
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    if (await http.get("/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
        assert_full(await upload(http, b"x" * 900_000), "cannot store")

        ballast.unlink()
        batch = await batch_once(http, stuck, LINES)
        output = await http.get(f"/v1/files/{batch['output_file_id']}/content")
        assert (await upload(http, requests())).status_code == 200
        assert router.restart_count == 1
    answers = [json.loads(line) for line in output.text.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [f"c{n}" for n in range(LINES)]
    assert {answer["response"]["body"]["usage"]["completion_tokens"] for answer in answers} == {TOKENS}
