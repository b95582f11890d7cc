"""Workloads whose requests begin alike: conversations, agents, traces with hashes."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from tidepipe_common.errors import ConfigError
from workloads.arrivals import Arrivals, requests_at
from workloads.content import ANSWER, content_tokens, token_ids
from workloads.files import open_workload
from workloads.mixes import Workload, followers, sessions_of


@pytest.mark.parametrize("name", ["conversations", "agents", "agents:systems=1,turns=3,think=0"])
def test_each_turn_goes_on_where_the_answer_ended(name: str) -> None:
    """A turn's prompt is the last one's, its answer, and more; the same seed gives the same workload."""
    workload = open_workload(name, 200, 7)
    assert workload == open_workload(name, 200, 7) != open_workload(name, 200, 8)
    assert len(workload.requests) >= 200
    sessions = sessions_of(workload.requests)
    assert len(sessions) > 5
    for turns in sessions:
        for before, one in pairwise(turns):
            assert one.content[:-1] == (*before.content, (ANSWER, before.output_tokens))
            assert one.content[-1][0] != ANSWER
        for one in turns:
            assert content_tokens(one.content) == one.prompt_tokens == len(token_ids(one.content))
    systems = {turns[0].content[0][0] for turns in sessions}
    own = [part for turns in sessions for part, _ in turns[-1].content if part not in systems | {ANSWER}]
    assert len(set(own)) == len(own)


def test_conversations_are_cut_drawn_and_begun_as_a_whole() -> None:
    """No turn without the one before; drawn oftener than they are, the copies share system prompts alone."""
    source = open_workload("conversations:systems=2", 60, 3)
    short = source.within(1500, 1500)
    assert 0 < len(short.requests) < len(source.requests)
    assert short.dropped == len(source.requests) - len(short.requests)
    whole = {turns[0].session: turns for turns in sessions_of(source.requests)}
    assert all(whole[turns[0].session][: len(turns)] == turns for turns in sessions_of(short.requests))
    drawn = source.sample(150, 5)
    assert len(drawn.requests) == 150 and drawn == source.sample(150, 5)
    sessions = sessions_of(drawn.requests)
    parts = [part for turns in sessions for part, _ in turns[-1].content[1:] if part != ANSWER]
    assert len(set(parts)) == len(parts)
    begun = requests_at(source, Arrivals(), 2.0, 150, 5).requests
    assert {(one.session, one.arrival_s) for one in begun} == {
        (turns[0].session, turns[0].arrival_s) for turns in sessions_of(begun)
    }
    # All turns at 2 per second: so many conversations in 75 s.
    assert max(one.arrival_s for one in begun) == pytest.approx(75.0)
    assert len(followers(begun)) == 150 - len(sessions)


def write(folder: Path, *lines: object) -> str:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return str(path)


def line(tokens: object, hashes: object, at: object = 0) -> dict[str, object]:
    return {"timestamp": at, "input_length": tokens, "output_length": 5, "hash_ids": hashes}


def test_hashes_become_parts(tmp_path: Path) -> None:
    """512 tokens each, the last one what is left; other traces' blocks are told by their number."""
    path = write(tmp_path, line(1100, [7, 8, -9]), line(1030, [7, 8, 11], 2500), line(300, []))
    first, second, third = open_workload(path, None, 0).requests
    assert first.content == ((2, 512), (3, 512), (4, 76))
    assert second.content == ((2, 512), (3, 512), (5, 6)) and second.arrival_s == 2.5
    assert third.content == () and third.prompt_tokens == 300
    fine = open_workload(write(tmp_path, line(40, [1, 2, 3]), line(33, [1, 2])), None, 0).requests
    assert fine[0].content == ((2, 16), (3, 16), (4, 8))
    assert fine[1].content[:2] == ((2, 16), (3, 16)) and fine[1].content[2][1] == 1
    trace = Workload("w", (first, second, third))
    assert trace.sample(2, 1).requests in ((first, second), (second, third))
    with pytest.raises(ConfigError, match="3 requests, 4 are needed"):
        trace.sample(4, 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (line(1100, [7, 8]) | {"output_length": "5"}, "request 2 .* output_length"),
        (line(-1, [7]), "request 2 .* input_length"),
        (line(True, [7]), "request 2 .* input_length"),
        (line(1100, [7, 8.5, 9]), "request 2 .* hash_ids"),
        (line(1100, "789"), "request 2 .* hash_ids"),
        (line(1100, [7, 8, 9], float("nan")), "request 2 .* timestamp"),
        (line(1100, [7] * 9), "request 2 .* 9 hashes do not fit a prompt of 1100 tokens"),
        ([1], "request 2 .* not a JSON object"),
    ],
)
def test_a_bad_line_is_named(bad: object, message: str, tmp_path: Path) -> None:
    """By its number, with what is wrong."""
    with pytest.raises(ConfigError, match=message):
        open_workload(write(tmp_path, line(1100, [7, 8, 9]), bad), None, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("conversation", "neither a file nor one of .*conversations, agents"),
        ("agents:tools=3", "no setting 'tools'; known: system, systems"),
        ("agents:turns=0.5", "turns must be a number of at least 1"),
        ("agents:answer=1.5", "answer must be a whole number"),
        ("agents:think=nan", "think must be"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_workload(name, None, 0)
