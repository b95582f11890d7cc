"""The peers by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from bench.peers.children import Figures
from bench.peers.llama_cpp import LlamaCpp
from bench.peers.places import KINDS, Places
from bench.peers.tidepipe import TidePipe
from bench.peers.transformers import Transformers
from bench.peers.vllm import Vllm


class Peer(Protocol):
    """Something that answers a workload."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def configuration(self) -> str:
        """Everything that it was told, in words."""
        ...

    def measure(self, workload: Path, logs: Path) -> Figures:
        """One run: seconds from the first request to the last token, tokens, and answers too short.

        Raises PeerError. logs: folder for what it says.
        """
        ...


class Server(Protocol):
    """A peer that can be asked over HTTP, as OpenAI's API."""

    def serve_command(self, port: int) -> list[str]:
        """The server's command line."""
        ...

    def environment(self, replica: int) -> dict[str, str]:
        """Its environment variables."""
        ...


def peers(places: Places) -> Mapping[str, Peer]:
    """All of them, ours first."""
    two_stages = ("--stages", "2", "--dtype", "bfloat16")
    every: tuple[Peer, ...] = (
        TidePipe(places, "tidepipe-bf16", two_stages),
        TidePipe(places, "tidepipe-td-pipe", (*two_stages, "--policy", "td-pipe")),
        TidePipe(places, "tidepipe-int8", (*two_stages, "--quantization", "int8")),
        Vllm(places, replicas=2, pipeline=1),
        Vllm(places, replicas=1, pipeline=2),
        Vllm(places, replicas=1, pipeline=2, even=True),
        Vllm(places, replicas=2, pipeline=1, dtype="float32"),
        Vllm(places, replicas=1, pipeline=2, dtype="float32"),
        LlamaCpp(places),
        *(
            peer
            for kind in KINDS
            for peer in (
                TidePipe(places, f"tidepipe-{kind}", two_stages, kind),
                TidePipe(places, f"tidepipe-{kind}-int8", (*two_stages, "--quantization", "int8"), kind),
                LlamaCpp(places, kind),
            )
        ),
        Transformers(places),
    )
    return {peer.name: peer for peer in every}


def servers(places: Places) -> Mapping[str, Server]:
    """Peers that can serve."""
    return {
        "vllm": Vllm(places, replicas=1, pipeline=1),
        "vllm-pp2": Vllm(places, replicas=1, pipeline=2),
        "vllm-pp2-even": Vllm(places, replicas=1, pipeline=2, even=True),
        "vllm-float32": Vllm(places, replicas=1, pipeline=1, dtype="float32"),
        "vllm-pp2-float32": Vllm(places, replicas=1, pipeline=2, dtype="float32"),
        "llama.cpp-bf16": LlamaCpp(places),
    }
