"""What the block store finds again on a trace with hashes, beside plain LRU and unlimited memory.

    python -m bench.prefix_hits TRACE.jsonl [--memory 1000,10000] [-o OUT.json]

Requests one after the other, each with all its hashes, and gone when the next one comes; a block is one hash.
Hits count in an unbroken beginning, as KV blocks can only be used so.
"""

from __future__ import annotations

import argparse
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from controller.scheduler.block_store import BlockStore
from workloads.files import open_workload

Keys = Sequence[bytes]


@dataclass
class User:
    """A request's blocks."""

    blocks: list[int] = field(default_factory=list)
    shared_blocks: int = 0


def found_by_store(requests: Sequence[Keys], memory: int) -> tuple[int, int]:
    """Hashes that are found, and evictions, with so many blocks."""
    store = BlockStore(memory, 1)
    found = 0
    for keys in requests:
        # What does not fit is computed without being kept.
        kept = keys[:memory]
        user = User()
        store.acquire(user, kept)
        begin = len(user.blocks)
        found += begin
        store.extend(user, len(kept))
        store.enter(user.blocks, kept, begin, len(kept))
        store.release(user)
    store.check([])
    return found, store.stats.evicted_blocks


def found_by_lru(requests: Sequence[Keys], memory: int) -> int:
    """The same of a plain list of hashes, the one evicted that was used least recently."""
    cache: OrderedDict[bytes, None] = OrderedDict()
    found = 0
    for keys in requests:
        found += _leading(keys, cache)
        for key in keys:
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > memory:
            cache.popitem(last=False)
    return found


def found_by_ideal(requests: Sequence[Keys]) -> int:
    """The same of a memory that forgets nothing."""
    seen: set[bytes] = set()
    found = 0
    for keys in requests:
        found += _leading(keys, seen)
        seen.update(keys)
    return found


def _leading(keys: Keys, known: OrderedDict[bytes, None] | set[bytes]) -> int:
    return next((place for place, key in enumerate(keys) if key not in known), len(keys))


@dataclass(frozen=True)
class Row:
    """Shares of all hashes. memory: in hashes; None: unlimited."""

    memory: int | None
    store: float
    plain: float
    evicted_blocks: int


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("trace", help="such as Mooncake's, with hash_ids")
    parser.add_argument("--memory", default="300,1000,3000,10000,30000", help="numbers of hashes")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    load = open_workload(options.trace, None, 0)
    requests = [[part.to_bytes(16, "little") for part, _ in one.content] for one in load.requests]
    total = sum(map(len, requests))
    distinct = len({key for keys in requests for key in keys})
    rows = []
    for memory in [int(part) for part in options.memory.split(",")]:
        found, evicted = found_by_store(requests, memory)
        rows.append(Row(memory, found / total, found_by_lru(requests, memory) / total, evicted))
    found, evicted = found_by_store(requests, distinct)
    rows.append(Row(None, found / total, found_by_ideal(requests) / total, evicted))
    report = {
        "trace": load.name,
        "requests": len(requests),
        "hashes": total,
        "distinct": distinct,
        "rows": [asdict(row) for row in rows],
    }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{load.name}: {len(requests)} requests, {total} hashes, {distinct} of them different")
    for row in rows:
        held = "unlimited" if row.memory is None else str(row.memory)
        print(f"{held:>9}: store {row.store:.1%}, plain LRU {row.plain:.1%}, {row.evicted_blocks} evicted")


if __name__ == "__main__":
    main()
