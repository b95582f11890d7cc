"""Workloads whose prompts begin alike, as token ids: what a client adds, turn by turn, and how much it wants.

A request without a conversation is a conversation of one turn. Drawn from a seed; the same for everybody.

    python -m bench.prefix_workloads shared.json      # requests that share a beginning, for `bench.engine`
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VOCABULARY = range(100, 49_152)
"""Token ids to draw from: below are special ones."""
ANSWERS = (64, 128)


@dataclass(frozen=True, slots=True)
class Turn:
    """tokens: what is added to the conversation so far. answer: tokens wanted, exactly."""

    tokens: tuple[int, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Workload:
    """All conversations begin at once; a turn is sent when the answer before it is there.

    streamed: answers come token by token, so that the time to the first one is known; else each comes whole.
    """

    name: str
    title: str
    conversations: tuple[tuple[Turn, ...], ...]
    streamed: bool


def shared_beginning(seed: int, requests: int = 64, shared: int = 1500, own: int = 100) -> Workload:
    """Requests whose prompts differ at their ends only."""
    chance = random.Random(f"shared {seed}")
    beginning = _tokens(chance, shared)
    turns = [(Turn(beginning + _tokens(chance, own), chance.randint(*ANSWERS)),) for _ in range(requests)]
    title = f"{requests} requests: {shared:,} tokens shared, {own} of their own"
    return Workload("shared", title, tuple(turns), streamed=False)


def conversations(
    seed: int, users: int = 24, turns: int = 6, system: int = 500, message: tuple[int, int] = (32, 96)
) -> Workload:
    """Users of one system prompt, who answer at once."""
    chance = random.Random(f"conversations {seed}")
    beginning = _tokens(chance, system)
    chats = []
    for _ in range(users):
        messages = [_tokens(chance, chance.randint(*message)) for _ in range(turns)]
        messages[0] = beginning + messages[0]
        chats.append(tuple(Turn(tokens, chance.randint(*ANSWERS)) for tokens in messages))
    title = f"{users} conversations of {turns} turns, system prompt of {system} tokens"
    return Workload("conversations", title, tuple(chats), streamed=True)


def nothing_shared(path: Path) -> Workload:
    """The requests of a workload file as `bench.peers` has it."""
    items = json.loads(path.read_text())
    turns = tuple((Turn(tuple(item["prompt"]), item["out"]),) for item in items)
    return Workload(
        "unshared", f"{len(turns)} requests of {path.stem}, nothing shared", turns, streamed=False
    )


def _tokens(chance: random.Random, count: int) -> tuple[int, ...]:
    return tuple(chance.choice(VOCABULARY) for _ in range(count))


def warm_up(seed: int, requests: int = 8) -> Workload:
    """Some requests of no interest, of lengths as in the others: kernels, pages, connections."""
    chance = random.Random(f"warm {seed}")
    turns: Sequence[tuple[Turn, ...]] = [
        (Turn(_tokens(chance, chance.randint(50, 400)), 16),) for _ in range(requests)
    ]
    return Workload("warm", "warm-up", tuple(turns), streamed=True)


def main() -> None:
    """Write a workload file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    firsts = [turns[0] for turns in shared_beginning(options.seed).conversations]
    options.out.write_text(json.dumps([{"prompt": turn.tokens, "out": turn.answer} for turn in firsts]))


if __name__ == "__main__":
    main()
