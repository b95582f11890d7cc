"""`tidepipe batch` as a process: bad lines, interruption, kill -9 and resumption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sdk_fake_router import TEXT, FakeRouter


def request(custom_id: str, **body: Any) -> str:
    """A line of the input."""
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions"}
    return json.dumps({**line, "body": {"prompt": "hello", "max_tokens": 12, **body}})


def start(source: Path, target: Path, router: FakeRouter, *options: str) -> subprocess.Popen[str]:
    """The command, running."""
    command = [sys.executable, "-m", "tidepipe.cli.main", "batch", str(source), "-o", str(target), "--json"]
    return subprocess.Popen(
        [*command, "--endpoint", router.address, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, report and stderr."""
    out, err = process.communicate(timeout=60)
    lines = out.splitlines()
    return process.returncode, json.loads(lines[-1]) if lines else {}, err


def answers(target: Path) -> list[dict[str, Any]]:
    """The output's lines."""
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_bad_lines_become_error_lines_in_their_place(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        request("good").encode(),
        b"",
        b"{not json",
        request("good").encode(),
        request("other-model", model="gpt-4").encode(),
        request("same-model", model="fake").encode(),
        b'{"custom_id": "\xff"}',
        request("refused", prompt="bad").encode(),
        request("hot", temperature=-1).encode(),
        request("last").encode(),
    ]
    source.write_bytes(b"\n".join(lines))
    with FakeRouter() as router:
        router.step_s = 0.02
        code, report, _ = finish(start(source, target, router))
    assert code == 1
    got = [(line["custom_id"], (line["error"] or {}).get("code")) for line in answers(target)]
    assert got == [
        ("good", None),
        (None, "invalid_json"),
        ("good", "duplicate_custom_id"),
        ("other-model", "model_not_found"),
        ("same-model", None),
        (None, "invalid_json"),
        ("refused", "invalid_value"),
        ("hot", "invalid_value"),
        ("last", None),
    ]
    assert [line["response"]["status_code"] for line in answers(target)[2:4]] == [400, 404]
    first = answers(target)[0]["response"]
    assert first["status_code"] == 200
    assert first["body"]["choices"][0]["text"] == TEXT
    assert (report["requests"], report["failed"], report["output_tokens"]) == (9, 6, 36)
    assert report["output_tokens_per_s"] == pytest.approx(36 / report["seconds"], rel=0.01)
    assert report["stages"][0]["busy"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_batch_goes_on_where_it_was(tmp_path: Path, blow: signal.Signals) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    progress = tmp_path / "out.jsonl.progress"
    source.write_text("\n".join(request(f"id-{number}", temperature=1) for number in range(12)))
    with FakeRouter() as router:
        router.step_s = 0.02
        first = start(source, target, router, "--concurrency", "2")
        while not progress.exists() or progress.read_bytes().count(b"\n") < 5:
            time.sleep(0.01)
        router.step_s = 1.0  # it must not be over before it is hit, however slow the machine
        second = start(source, target, router)
        code, _, err = finish(second)
        assert code == 2
        assert "another run is writing this output" in err
        first.send_signal(blow)
        code, _, err = finish(first)
        if blow is signal.SIGINT:
            assert code == 130
            assert "of 12 requests are done" in err
            assert "Traceback" not in err
        assert not target.exists()
        # The machine may also stop in the middle of a write, and the input may be edited meanwhile.
        with progress.open("ab") as file:
            file.write(b'{"number": 12, "digest"')
        kept = progress.read_bytes().count(b"\n") - 1
        source.write_text(source.read_text().replace("hello", "changed", 1))
        router.step_s = 0.0
        router.requests.clear()
        code, report, _ = finish(start(source, target, router))
    assert code == 0
    assert report["resumed"] == kept - 1
    assert len(router.requests) == 12 - report["resumed"]
    assert sum(call.request.text == "changed" for call in router.requests) == 1
    assert [line["custom_id"] for line in answers(target)] == [f"id-{number}" for number in range(12)]
    assert all(line["response"]["body"]["choices"][0]["text"] == TEXT for line in answers(target))
    assert report["output_tokens"] == 12 * 12
    assert not progress.exists()


def test_a_lost_service_fails_no_request(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(request(f"id-{number}") for number in range(20)))
    with FakeRouter() as router:
        router.cut_after = [2, 5]
        router.full_calls = 1
        router.cancels = 3  # as an earlier run does that ends late: its requests have the same ids
        code, report, _ = finish(start(source, target, router))
    assert (code, report["failed"], len(answers(target))) == (0, 0, 20)
    assert all(line["response"]["body"]["choices"][0]["text"] == TEXT for line in answers(target))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "cannot read"),
        (["--model", "somewhere"], "--model describes a cluster to start"),
    ],
)
def test_wrong_use_is_one_clear_line(tmp_path: Path, options: list[str], message: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    if options:
        source.write_text(request("a"))
    with FakeRouter() as router:
        code, _, err = finish(start(source, target, router, *options))
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not target.exists()
    assert not (tmp_path / "out.jsonl.progress").exists()
