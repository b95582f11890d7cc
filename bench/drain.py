"""Drain of an instance with running sequences: how long each client waits for its next token, when they move
with their KV blocks, are computed anew elsewhere, or end where they are.

    python -m bench.drain                                   SmolLM2-135M, two instances of one stage, float32
    python -m bench.drain --emulated                        two stages each, as on L20s, blocks over 10 Gbit/s
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.admin import AdminClient
from tidepipe.client.async_client import AsyncClient

WAYS = {"hand-over": "always", "by cost": "auto", "recompute": "never", "finish": "auto"}
"""How it is drained, and --kv-transfer of the instances for it."""


@dataclass
class Stream:
    """One client: when its tokens came, the clock's seconds."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def run(self, client: AsyncClient, prompt: list[int], output: int) -> None:
        """Ask, and take note."""
        async with client.stream(prompt, temperature=0, max_tokens=output, ignore_eos=True) as events:
            async for event in events:
                if event.token_ids:
                    self.tokens.extend(event.token_ids)
                    self.times.append(time.monotonic())

    def pause_s(self, since: float) -> float:
        """The longest time without a token that ended after then."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return max((after - before for before, after in pairs if after >= since), default=0.0)


@dataclass(frozen=True, slots=True)
class Drained:
    """pause_s: longest time without a token of each client. usual_s: the same before the drain.

    empty_s: until the instance has nothing left. equal: all tokens as in the run before.
    """

    way: str
    sequences: int
    handed_over: int
    pause_median_s: float
    pause_max_s: float
    usual_max_s: float
    empty_s: float
    fetched_mb: float
    taken_over: int
    equal: bool


async def drained(options: argparse.Namespace, way: str, known: list[list[int]]) -> Drained:
    """Of one way."""
    common: dict[str, Any] = {"model": options.model, "instances": 2, "kv_transfer": WAYS[way]}
    if options.emulated:
        common |= {"executor": "emulated", "stages": 2, "network_gbit": options.gbit}
    else:
        common |= {"dtype": "float32", "stages": 1, "kv_blocks": 4000}
    async with (
        LocalCluster(ClusterConfig(**common)) as cluster,
        AsyncClient(cluster.grpc_address) as client,
        AdminClient(cluster.grpc_address) as admin,
    ):
        await admin.drain("instance-1")
        streams = [Stream() for _ in range(options.sequences)]
        async with asyncio.TaskGroup() as group:
            for number, stream in enumerate(streams):
                prompt = [100 + (number * 31 + place) % 900 for place in range(options.prompt)]
                group.create_task(stream.run(client, prompt, options.output))
            while min(len(one.tokens) for one in streams) < options.before:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await admin.drain("instance-1", resume=True)
            started = time.monotonic()
            await asyncio.sleep(0.5)
            began = time.monotonic()
            usual = max(one.pause_s(started) for one in streams)
            counts = await admin.drain_counts("instance-0", finish=way == "finish")
            while await _left(client, "instance-0"):  # noqa: ASYNC110 (it is another process's state)
                await asyncio.sleep(0.05)
            empty = time.monotonic() - began
        status = {one.instance_id: one.status for one in (await client.status()).instances}
        moves = None if (there := status["instance-1"]) is None else there.hand_overs
    if not known:
        known.extend(one.tokens for one in streams)
    pauses = [one.pause_s(began) for one in streams]
    return Drained(
        way,
        options.sequences,
        counts["handed_over"],
        round(statistics.median(pauses), 3),
        round(max(pauses), 3),
        round(usual, 3),
        round(empty, 2),
        round(moves.fetched_bytes / 1e6, 1) if moves else 0.0,
        moves.taken_over if moves else 0,
        known == [one.tokens for one in streams],
    )


async def _left(client: AsyncClient, name: str) -> int:
    """Sequences that it has."""
    found = [one.status for one in (await client.status()).instances if one.instance_id == name]
    return sum(1 if one is None else one.running + one.waiting for one in found)


async def main() -> None:
    """Print a JSON line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--emulated", action="store_true")
    parser.add_argument("--gbit", type=float, default=10.0)
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--prompt", type=int, default=400)
    parser.add_argument("--output", type=int, default=200)
    parser.add_argument("--before", type=int, default=20, help="tokens of each before the drain")
    parser.add_argument("--ways", default=",".join(WAYS))
    options = parser.parse_args()
    known: list[list[int]] = []
    for way in options.ways.split(","):
        print(json.dumps(asdict(await drained(options, way, known))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
