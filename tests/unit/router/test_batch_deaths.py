"""Lines under way when routers died: the one that kills them is given up, all others are answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from router.batches import deaths, files, lines
from router.batches.answering import Reading
from router.batches.database import Database
from router.batches.jobs import BatchJobs
from router.batches.records import BatchRecord, FileRecord
from tidepipe_common.openai.batch import BatchItem


def batch_file(names: list[str]) -> bytes:
    body = {"prompt": "go", "max_tokens": 5, "temperature": 0}
    line = {"method": "POST", "url": "/v1/completions", "body": body}
    return b"".join(json.dumps({**line, "custom_id": name}).encode() + b"\n" for name in names)


class Lives:
    """Routers, one after the other, on one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._monkeypatch = monkeypatch
        self.deaths = 0

    async def live(
        self,
        names: list[str] | None,
        killers: set[str],
        *,
        while_read: bool = True,
        slow: bool = False,
        killed_after_s: float = 30.0,
    ) -> BatchRecord | None:
        """The batch when it is finished, or None if this router died of a killer, or was killed."""
        died = asyncio.Event()

        async def answer(item: BatchItem, reading: Reading) -> dict[str, Any]:
            kills = item.custom_id in killers
            async with reading():
                if kills and while_read:
                    died.set()
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
            await asyncio.sleep(0.02)
            if kills:
                died.set()
            if slow or kills:
                await asyncio.Event().wait()
            return {"text": item.custom_id}

        database = Database(self._folder)
        jobs = BatchJobs(database, answer, lambda: 0.0, concurrency=8)
        running = asyncio.create_task(jobs.run())
        await asyncio.sleep(0)
        if names is not None:
            await database.run(files.begin, FileRecord("f", 1, 0, "in.jsonl", "batch"))
            await database.run(files.append, "f", 0, batch_file(names))
            await database.run(files.complete, "f", len(batch_file(names)))
            await jobs.create("/v1/completions", "f", 1, None)
        end = asyncio.get_running_loop().time() + killed_after_s
        batch: BatchRecord | None = None
        while not died.is_set() and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
            [batch] = await database.run(lines.listing, None, 10, True)
            if batch.finished:
                break
        gone = batch is None or not batch.finished
        with self._monkeypatch.context() as patch:
            if gone:
                self.deaths += 1
                patch.setattr(deaths, "ended_in_order", lambda db: None)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        database.close()
        return None if gone else batch


async def answers(folder: Path, batch: BatchRecord) -> tuple[list[str], list[tuple[str, str]]]:
    """custom_ids of the answered lines, and (custom_id, code) of the failed ones."""
    database = Database(folder)
    good, bad = [], []
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id:
            content, _ = await database.run(files.read, await database.run(files.get, file_id), 0)
            for line in map(json.loads, content.splitlines()):
                if line["error"]:
                    bad.append((line["custom_id"], line["error"]["code"]))
                else:
                    good.append(line["custom_id"])
    database.close()
    return good, bad


@pytest.mark.parametrize(("while_read", "most"), [(True, 2), (False, 6)])
@pytest.mark.parametrize("names", [["killer"], ["killer"] + [f"c{i}" for i in range(20)]])
async def test_a_line_that_kills_its_router_is_given_up(
    names: list[str], while_read: bool, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After two deaths if it does so while it is read, or alone; else once it was alone often enough."""
    lives = Lives(tmp_path, monkeypatch)
    batch = await lives.live(names, {"killer"}, while_read=while_read)
    while batch is None and lives.deaths < 10:
        batch = await lives.live(None, {"killer"}, while_read=while_read)
    assert batch is not None and batch.status == "completed"
    assert 2 <= lives.deaths <= (2 if len(names) == 1 else most)
    good, bad = await answers(tmp_path, batch)
    assert sorted(good) == sorted(set(names) - {"killer"})
    assert bad == [("killer", "request_given_up")]


async def test_a_router_killed_from_outside_fails_no_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times in the midst of its lines; then they are answered."""
    lives = Lives(tmp_path, monkeypatch)
    names = [f"c{i}" for i in range(6)]
    assert await lives.live(names, set(), slow=True, killed_after_s=0.2) is None
    for _ in range(9):
        assert await lives.live(None, set(), slow=True, killed_after_s=0.2) is None
    batch = await lives.live(None, set())
    assert batch is not None
    assert await answers(tmp_path, batch) == (names, [])
