"""llama.cpp's server, continuous batching over HTTP."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.children import RUN_S, Figures, child, wait_until
from bench.peers.places import Places
from launcher.ports import choose_port

SLOTS = 32
THREADS = 2
_TOKENS_PER_SLOT = 1664
"""A slot's context: the longest request of the workload fits."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """One server on all cores. kind: of the model's file.

    threads: on a busy machine one is faster than two that wait for each other.
    """

    places: Places
    kind: str = "bf16"
    threads: int = THREADS

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"llama.cpp-{self.kind}"

    @property
    def configuration(self) -> str:
        """In words."""
        return " ".join(self.serve_command(0)[3:])

    def serve_command(self, port: int) -> list[str]:
        """An OpenAI-compatible server."""
        context = ["-c", str(SLOTS * _TOKENS_PER_SLOT), "-np", str(SLOTS)]
        threads = ["-t", str(self.threads), "-tb", str(self.threads)]
        host = ["--host", "127.0.0.1", "--port", str(port), "--no-webui"]
        return [
            str(self.places.llama_server),
            "-m",
            str(self.places.gguf(self.kind)),
            *context,
            *threads,
            *host,
        ]

    def environment(self, replica: int) -> dict[str, str]:
        """Environment variables of the server."""
        return {}

    def measure(self, workload: Path, logs: Path) -> Figures:
        """One run; the server is up before it begins."""
        items = json.loads(workload.read_text())
        port = choose_port("127.0.0.1", 0)
        url = f"http://127.0.0.1:{port}"

        def answer(item: dict[str, Any]) -> int:
            body = {
                "prompt": item["prompt"],
                "n_predict": item["out"],
                "ignore_eos": True,
                "temperature": 0,
                "cache_prompt": False,
            }
            return int(_post(f"{url}/completion", body)["tokens_predicted"])

        # The pool outside: should this be interrupted, the server's end ends the requests that it waits for.
        with (
            ThreadPoolExecutor(len(items)) as pool,
            child(self.serve_command(port), logs / f"{self.name}.log") as process,
        ):
            wait_until("llama.cpp's server", lambda: _healthy(url), process)
            answer({"prompt": items[0]["prompt"][:16], "out": 4})
            begin = time.monotonic()
            counts = list(pool.map(answer, items))
            seconds = time.monotonic() - begin
        return {
            "seconds": seconds,
            "prompt_tokens": sum(len(item["prompt"]) for item in items),
            "output_tokens": sum(counts),
            "short": sum(count != item["out"] for count, item in zip(counts, items, strict=True)),
        }


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=RUN_S) as response:
        result: dict[str, Any] = json.load(response)
    return result


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
