"""TidePipe beside vLLM-CPU, llama.cpp and transformers: same workload file, cores and model, in turn.

    python -m bench.peers setup                                      # environments of their own
    python -m bench.peers run WORKLOAD.json --rounds 3 --out docs/images/peers
    python -m bench.peers serve vllm-pp2 --port 8000                 # for `tidepipe bench serve --url ...`

WORKLOAD.json: [{"prompt": [token ids], "out": n}, ...]; all at once, greedy, end-of-sequence ignored. Each
run is kept in --runs as soon as it is done: the same command goes on where it was. Writes OUT.json, OUT.png.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.peers.catalog import Peer, peers, servers
from bench.peers.children import Figures, PeerError, end_children_when_ended
from bench.peers.places import Places, set_up
from bench.peers.report import draw, table
from tidepipe_common.errors import TidePipeError
from tidepipe_common.model_source import cache_dir


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=cache_dir() / "peers", help="environments, models")
    parser.add_argument("--model", default="smollm2-135m", help="a pulled model, or a Hugging Face folder")
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup")
    setup.add_argument("names", nargs="*", default=["vllm", "llama.cpp"])
    run = commands.add_parser("run")
    run.add_argument("workload", type=Path)
    run.add_argument("--peers", help="names, with commas; default: all that are set up")
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--runs", type=Path, help="folder of single runs; default: FOLDER/runs")
    run.add_argument("--out", type=Path, help="path without ending")
    serve = commands.add_parser("serve")
    serve.add_argument("name")
    serve.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    end_children_when_ended()
    places = Places(options.folder, options.model)
    try:
        match options.command:
            case "setup":
                set_up(places, set(options.names))
            case "run":
                compare(places, options)
            case _:
                serve_peer(places, options.name, options.port)
    except (TidePipeError, PeerError, subprocess.SubprocessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyError as error:
        print(f"error: no peer is called {error}", file=sys.stderr)
        return 2
    return 0


def serve_peer(places: Places, name: str, port: int) -> None:
    """Become the peer's server."""
    server = servers(places)[name]
    command = server.serve_command(port)
    os.execvpe(command[0], command, {**os.environ, **server.environment(0)})


def compare(places: Places, options: argparse.Namespace) -> None:
    """Run all peers in turn, `rounds` times."""
    every = peers(places)
    names = options.peers.split(",") if options.peers else list(every)
    chosen = [every[name] for name in names]
    folder = (options.runs or places.folder / "runs") / _digest(options.workload, places.model)
    folder.mkdir(parents=True, exist_ok=True)
    for peer in chosen:
        print(f"{peer.name}: {peer.configuration}")
    runs: dict[str, list[Figures]] = {peer.name: [] for peer in chosen}
    for number in range(options.rounds):
        for peer in chosen:
            runs[peer.name].append(_run(peer, options.workload, folder, number))
    print(table(runs))
    if options.out:
        configurations = {peer.name: peer.configuration for peer in chosen}
        report = {"workload": options.workload.name, "configurations": configurations, "runs": runs}
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1))
        draw(runs, options.out.with_suffix(".png"))


def _run(peer: Peer, workload: Path, folder: Path, number: int) -> Figures:
    path = folder / f"{peer.name}-{number}.json"
    if path.exists():
        kept: dict[str, Any] = json.loads(path.read_text())
        if kept["configuration"] == peer.configuration:
            figures: Figures = kept["figures"]
            return figures
    figures = peer.measure(workload, folder)
    if figures["short"]:
        raise PeerError(f"{peer.name}: {figures['short']} answers have not the length that was asked for")
    path.write_text(json.dumps({"configuration": peer.configuration, "figures": figures}))
    print(f"round {number + 1}: {peer.name} {figures['seconds']:.1f} s", flush=True)
    return figures


def _digest(workload: Path, model: str) -> str:
    """Runs of another workload or model are never mixed with these."""
    return hashlib.sha256(workload.read_bytes() + model.encode()).hexdigest()[:12]


if __name__ == "__main__":
    raise SystemExit(main())
