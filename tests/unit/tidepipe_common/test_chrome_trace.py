"""Traces keep to the Trace Event Format, and lanes to the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tidepipe_common.codec.timeline import PIECE, add_piece, timeline_to_wire
from tidepipe_common.telemetry.chrome_trace import write_chrome_trace
from tidepipe_common.types.plan import Phase
from tidepipe_common.types.timeline import MemorySample, PhaseTurn, StageSpan, Timeline

WHY = 'memory is full (slack 0.02) "now"'


def timeline(name: str, steps: int, start: float) -> Timeline:
    spans = [
        StageSpan(
            stage, step, Phase.MIXED, 64, 24, start + step + 0.5 * stage, start + step + 0.5 * stage + 0.4
        )
        for step in range(1, steps + 1)
        for stage in (0, 1)
    ]
    turns = [PhaseTurn(start + 1, Phase.PREFILL, Phase.DECODE, WHY)]
    return Timeline(name, 2, spans, turns, [MemorySample(start + 1.5, 0.5, 0.75, 10, 3)])


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check(event: dict[str, Any]) -> None:
    """What the format asks of each kind of event."""
    assert isinstance(event["name"], str)
    assert isinstance(event["pid"], int)
    assert isinstance(event["tid"], int)
    assert is_number(event["ts"])
    assert event["ts"] >= 0
    match event["ph"]:
        case "X":
            assert is_number(event["dur"])
            assert event["dur"] >= 0
        case "i":
            assert event["s"] in ("g", "p", "t")
        case "C":
            assert event["args"]
            assert all(is_number(value) for value in event["args"].values())
        case "M":
            assert event["name"] in ("process_name", "thread_name")
            assert isinstance(event["args"]["name"], str)
        case other:
            raise AssertionError(f"unexpected ph {other!r}")


def test_the_format_is_kept(tmp_path: Path) -> None:
    """Two instances: lanes named, steps in microseconds from the first event on, reasons whole."""
    path = tmp_path / "trace.json"
    # Times since 1970: differences of microseconds must survive.
    assert write_chrome_trace([timeline("a", 3, 1.8e9), timeline("b", 2, 1.8e9)], path) == 5
    trace = json.loads(path.read_text())
    events = trace["traceEvents"]
    for event in events:
        check(event)
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert lanes == {(p, t): n for p in (1, 2) for t, n in ((0, "phase"), (1, "stage 0"), (2, "stage 1"))}
    steps = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    assert [e["ts"] for e in steps[:3]] == pytest.approx([0.0, 500_000.0, 1_000_000.0], abs=1.0)
    assert [e["dur"] for e in steps] == pytest.approx([400_000.0] * 6, abs=1.0)
    assert all((e["pid"], e["tid"]) in lanes for e in steps)
    assert [e["args"]["reason"] for e in events if e["ph"] == "i"] == [
        timeline("a", 0, 0).turns[0].reason
    ] * 2


def test_a_timeline_travels_in_pieces() -> None:
    """More than one message holds; the same at the other end."""
    sent = timeline("a", PIECE, 1.8e9)
    got = Timeline("a", 0)
    pieces = list(timeline_to_wire(sent))
    assert max(piece.ByteSize() for piece in pieces) < 2**20
    for piece in pieces:
        add_piece(got, piece)
    assert got == sent
