"""Throughput of a model: the whole live system, and vLLM's engine where there is one, one after the other."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.peers.children import Figures, PeerError, Script, child
from bench.peers.places import SCRIPTS
from tests.tiny_models import random_prompts

LONGEST = 1024
RUN_S = 120.0


def compared(model: Path, settings: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Output tokens per second of both; right if ours answered every request in full."""
    folder, device = Path(settings["folder"]), settings["device"]
    requests, prompt, out = (8, 16, 8) if settings["tiny"] else (256, 256, 128)
    workload = folder / "workload.json"
    prompts = random_prompts([prompt] * requests, seed=5)
    workload.write_text(json.dumps([{"prompt": list(one), "out": out} for one in prompts]))
    found: dict[str, Any] = {"requests": requests, "prompt_tokens": prompt, "output_tokens": out}
    try:
        ours = live(model, workload, device, dtype, folder)
        found["tidepipe"] = ours
        right = ours["failed"] == 0
    except (PeerError, OSError) as error:
        return {"right": False, **found, "why": str(error)}
    if not settings["vllm_python"]:
        found["vllm"] = "not here"
    else:
        found["vllm"] = beside(model, workload, Path(settings["vllm_python"]), dtype, folder)
    return {"right": right, **found, **({} if right else {"why": f"{ours['failed']} requests failed"})}


def live(model: Path, workload: Path, device: str, dtype: str, logs: Path) -> Figures:
    """A cluster of one stage, started for it."""
    command = [sys.executable, "-m", "tidepipe.cli.main", "bench", "throughput", str(workload), "--json"]
    command += ["--model", str(model), "--device", device, "--dtype", dtype]
    log = logs / "tidepipe.log"
    with child(command, log, pipes=True) as process:
        said, _ = process.communicate(timeout=RUN_S)
        if process.returncode:
            raise PeerError(f"tidepipe bench throughput failed: {_last(log)}")
    report = json.loads(said.splitlines()[-1])
    return {name: report[name] for name in ("failed", "seconds", "output_tokens_per_s", "total_tokens_per_s")}


def beside(model: Path, workload: Path, python: Path, dtype: str, logs: Path) -> Figures | str:
    """vLLM's engine on the same requests; or why there is no figure: that is not for us to be right about."""
    engine = {
        "dtype": dtype,
        "max_model_len": LONGEST if _context(model) >= LONGEST else _context(model),
        "enable_prefix_caching": False,
        "skip_tokenizer_init": True,
    }
    settings = {"workload": str(workload), "first": 0, "step": 1, "model": str(model), "engine": engine}
    log = logs / "vllm.log"
    try:
        with child([python, SCRIPTS / "vllm_offline.py", json.dumps(settings)], log, pipes=True) as process:
            script = Script(process, log)
            script.wait_ready()
            script.go()
            figures = script.result()
    except (PeerError, OSError):
        return f"did not run: {_last(log)}"
    return {**figures, "output_tokens_per_s": round(figures["output_tokens"] / figures["seconds"], 1)}


def _context(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1][:300]
