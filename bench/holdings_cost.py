"""What an instance's account of its KV blocks costs beside its scheduler.

    python -m bench.holdings_cost

A store of 100,000 blocks that 2,000 sequences of 50 blocks fill, with and without the account that routers
are told; then new ones that evict old ones, with a report after every so many. Times in microseconds of CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from controller.scheduler.block_store import BlockStore
from controller.scheduler.holdings import HeldPrefixes, HoldingsReader
from tidepipe_common.codec.controller import holdings_to_wire
from tidepipe_common.prefix import block_keys, root_key
from tidepipe_common.settings.defaults import BLOCK_SIZE

SEQUENCES = 2000
BLOCKS = 50


@dataclass
class User:
    """One sequence."""

    keys: list[bytes]
    blocks: list[int] = field(default_factory=list)
    shared_blocks: int = 0


def users(count: int, begin: int) -> Iterator[User]:
    """Sequences that have nothing in common."""
    root = root_key("bench")
    for number in range(begin, begin + count):
        yield User(block_keys(root, [number] * BLOCKS * BLOCK_SIZE, BLOCK_SIZE))


def fill(store: BlockStore, arriving: list[User]) -> float:
    """CPU time of a block that a sequence takes, enters and leaves, microseconds."""
    began = time.thread_time()
    for user in arriving:
        store.extend(user, BLOCKS * BLOCK_SIZE)
        store.enter(user.blocks, user.keys, 0, BLOCKS)
        store.release(user)
    return 1e6 * (time.thread_time() - began) / (len(arriving) * BLOCKS)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--every", type=int, default=4, help="sequences that come between two reports")
    options = parser.parse_args()
    result: dict[str, float] = {}
    for name, listens in (("silent", False), ("told", True)):
        store = BlockStore(SEQUENCES * BLOCKS, BLOCK_SIZE)
        held = HeldPrefixes(BLOCK_SIZE)
        if listens:
            store.listener = held
        result[f"{name}_fill_us"] = fill(store, list(users(SEQUENCES, 0)))
        result[f"{name}_churn_us"] = fill(store, list(users(SEQUENCES, SEQUENCES)))
    reader, took, sizes = HoldingsReader(held), [], []
    while True:
        began = time.thread_time()
        news = reader.next()
        wire = holdings_to_wire(news)
        spent = time.thread_time() - began
        if not news.added:
            break
        took.append(spent)
        sizes.append(wire.ByteSize())
    result |= {
        "keys": len(held),
        "whole_pieces": len(took),
        "piece_us": 1e6 * max(took),
        "piece_bytes": max(sizes),
    }
    took.clear()
    arriving = list(users(SEQUENCES, 2 * SEQUENCES))
    for begin in range(0, SEQUENCES, options.every):
        fill(store, arriving[begin : begin + options.every])
        began = time.thread_time()
        sizes.append(holdings_to_wire(reader.next()).ByteSize())
        took.append(time.thread_time() - began)
    took.sort()
    result |= {
        "difference_p50_us": 1e6 * took[len(took) // 2],
        "difference_p99_us": 1e6 * took[int(0.99 * len(took))],
        "difference_bytes": sizes[-1],
    }
    began = time.thread_time()
    for _ in range(1000):
        holdings_to_wire(reader.next())
    result["nothing_new_us"] = 1000 * (time.thread_time() - began)
    print(json.dumps({name: round(value, 2) for name, value in result.items()}, indent=1))


if __name__ == "__main__":
    main()
