"""What everything beside computing costs: CPU seconds by process and kind of thread, per 1,000 output tokens.

    python -m bench.message_cost --executor emulated --requests 40                 # stages that sleep
    python -m bench.message_cost --executor torch --model smollm2-135m --stream

CPU time hardly depends on what else the machine does, so two versions compare on a busy one, in turn:

    for i in 1 2 3; do for tree in A B; do (cd $tree && PYTHONPATH=. python -m bench.message_cost); done; done

Answers are wanted whole, or as streams with --stream. The client, which is this process, is left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path

from launcher.config import ClusterConfig
from launcher.local import LocalCluster
from tidepipe.client.async_client import AsyncClient

COMPUTES = "stage, computing"


def cpu_seconds(pids: dict[str, int]) -> tuple[Counter[str], Counter[str]]:
    """CPU seconds, and times that threads were put on a core, since start; by process and kind of thread.

    pids: of processes, by name.
    """
    spent: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    for name, pid in pids.items():
        role = name.rstrip("-0123456789")
        threads = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                threads[task.name] = (task / "comm").read_text().strip(), (task / "schedstat").read_text()
            except OSError:
                continue
        computing = _most_used(pid, threads) if "stage" in name else ""
        for thread, (kind, stat) in threads.items():
            on_core, _, times = map(int, stat.split())
            where = COMPUTES if thread == computing else f"{role}, {_kind(thread, pid, kind)}"
            spent[where] += on_core / 1e9  # type: ignore[assignment]
            runs[where] += times
    return spent, runs


def _most_used(pid: int, threads: dict[str, tuple[str, str]]) -> str:
    """The compute thread of a stage."""
    others = {name: int(stat.split()[0]) for name, (_, stat) in threads.items() if name != str(pid)}
    return max(others, key=lambda name: others[name], default="")


def _kind(thread: str, pid: int, comm: str) -> str:
    if thread == str(pid):
        return "loop"
    return "gRPC" if comm.startswith(("event_engine", "grpc", "python", "resolver", "timer")) else comm


async def run(options: argparse.Namespace) -> dict[str, object]:
    """One cluster, one load."""
    config = ClusterConfig(
        model=options.model,
        executor=options.executor,
        hardware=options.hardware if options.executor == "emulated" else None,
        stages=options.stages,
        policy=options.policy,
        log_level="error",
    )
    async with LocalCluster(config) as cluster, AsyncClient(cluster.grpc_address, timeout=600) as client:
        pids = {child.name: child.pid for child in cluster.children if child.pid is not None}

        async def one(index: int, tokens: int) -> int:
            prompt = [100 + index] * options.prompt
            if not options.stream:
                answer = await client.generate(prompt, max_tokens=tokens, ignore_eos=True, skip_text=True)
                return len(answer.answers[0].token_ids)
            stream = client.stream(prompt, max_tokens=tokens, ignore_eos=True, skip_text=True)
            return sum([len(piece.token_ids) async for piece in stream])

        await asyncio.gather(*(one(-1 - index, 8) for index in range(4)))
        before, ran = cpu_seconds(pids)
        began = time.monotonic()
        counts = await asyncio.gather(*(one(index, options.output) for index in range(options.requests)))
        seconds = time.monotonic() - began
        after, runs = cpu_seconds(pids)
        status = (await client.status()).instances[0].status
    assert status is not None, "it has just answered"
    kilo = sum(counts) / 1000
    spent = {name: round((after[name] - before[name]) / kilo, 4) for name in sorted(after)}
    beside = {name: value for name, value in spent.items() if name != COMPUTES}
    return {
        "tokens": sum(counts),
        "seconds": round(seconds, 2),
        "dispatch_ms": round(1000 * status.dispatch_s, 3),
        "computing": spent.get(COMPUTES, 0.0),
        "beside": round(sum(beside.values()), 4),
        "wake_ups": round(sum(runs[name] - ran[name] for name in beside) / kilo),
        "each": beside,
    }


def main() -> None:
    """One JSON object; CPU seconds and wake-ups per 1,000 tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--executor", default="emulated", choices=("emulated", "torch"))
    parser.add_argument("--hardware", default="l20", help="that is emulated")
    parser.add_argument("--stages", type=int, default=2)
    parser.add_argument("--policy", default="auto")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--prompt", type=int, default=100, help="tokens")
    parser.add_argument("--output", type=int, default=150, help="tokens")
    parser.add_argument("--stream", action="store_true", help="tokens one by one, not whole answers")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(run(options))), flush=True)


if __name__ == "__main__":
    main()
