"""Batches when routers stop, clients change their minds, and time runs out."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import httpx

from router.batches import files, lines
from router.batches.answering import Reading
from router.batches.database import Database
from router.batches.jobs import BatchJobs
from router.batches.records import FileRecord
from tests.fakes.client import request
from tests.fakes.controller import fake_controller, scripted_text
from tests.fakes.router import running_router
from tidepipe.v1 import inference_pb2 as pb
from tidepipe_common.openai.batch import BatchItem

PROMPT, COUNT, TOKENS = "go", 12, 60


def batch_file(count: int = COUNT) -> bytes:
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    return b"".join(json.dumps({**line, "custom_id": f"c{n}"}).encode() + b"\n" for n in range(count))


async def test_a_router_that_stops_in_order_cuts_no_answer_short(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data_dir": str(tmp_path), "batch_concurrency": 3}
    async with fake_controller() as controller:
        controller.step_s = 0.01  # so that answers take longer than the router's grace
        async with running_router(**settings) as router:
            await controller.register(router.address)
            async with httpx.AsyncClient(base_url=f"http://{router.http}", trust_env=False) as http:
                sent = await http.post(
                    "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", batch_file())}
                )
                wanted = {
                    "input_file_id": sent.json()["id"],
                    "endpoint": "/v1/completions",
                    "completion_window": "24h",
                }
                batch = (await http.post("/v1/batches", json=wanted)).json()
                # Another caller who knows the batch's id gets in the way of none of its lines.
                for number in range(1, COUNT + 1):
                    name = f"{batch['id']}-{number}"
                    await router.stub.Submit(pb.SubmitRequest(request=request(name)), timeout=5)
                while not 0 < batch["request_counts"]["completed"] < COUNT:
                    batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
        async with running_router(**settings) as router:
            await controller.register(router.address)
            async with (
                asyncio.timeout(30),
                httpx.AsyncClient(base_url=f"http://{router.http}", trust_env=False) as http,
            ):
                while batch["status"] != "completed":
                    await asyncio.sleep(0.02)
                    batch = (await http.get(f"/v1/batches/{batch['id']}")).json()
                output = await http.get(f"/v1/files/{batch['output_file_id']}/content")
    answers = [json.loads(line) for line in output.text.splitlines()]
    assert [one["custom_id"] for one in answers] == [f"c{n}" for n in range(COUNT)]
    text = scripted_text(list(PROMPT.encode()), TOKENS)
    assert {one["response"]["body"]["choices"][0]["text"] for one in answers} == {text}


async def test_an_expired_batch_says_what_is_missing(tmp_path: Path) -> None:
    database = Database(tmp_path)
    await database.run(files.begin, FileRecord("f", 1, 0, "in.jsonl", "batch"))
    await database.run(files.append, "f", 0, batch_file(3))
    await database.run(files.complete, "f", len(batch_file(3)))
    answered = asyncio.Event()

    async def only_the_first(item: BatchItem, reading: Reading) -> dict[str, Any]:
        if item.custom_id == "c0":
            answered.set()
            return {"text": "there"}
        await asyncio.Event().wait()
        raise AssertionError

    # The first look at the clock is the batch's creation; the next one is half a second before its end.
    clock = itertools.chain([0.0], itertools.repeat(3599.5))
    jobs = BatchJobs(database, only_the_first, lambda: next(clock), concurrency=8)
    running = asyncio.create_task(jobs.run())
    await asyncio.sleep(0)
    batch = await jobs.create("/v1/completions", "f", 1, None)
    async with asyncio.timeout(30):
        while not batch.finished:
            await asyncio.sleep(0.02)
            batch = await database.run(lines.get, batch.id)
    assert answered.is_set() and batch.status == "expired"
    assert (batch.counts.total, batch.counts.completed, batch.counts.failed) == (3, 1, 2)
    missing, _ = await database.run(files.read, await database.run(files.get, batch.error_file_id or ""), 0)
    assert [json.loads(line)["error"]["code"] for line in missing.splitlines()] == ["batch_expired"] * 2
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    database.close()
