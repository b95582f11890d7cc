"""TidePipe tried on one GPU, within eight minutes: `make gpu-check`.

Each part runs in a process of its own, so that what breaks a device, hangs, or takes too long costs that part
alone. What they found is one JSON object, in a file: exactness against transformers on a CPU in float32, for
plain, packed and adapted models, over one stage and two; attention back ends, which agree and how fast they
are; CUDA graphs, whether they change an answer and what they save; throughput of a model of a billion random
parameters in bfloat16 and in 4 bits, the whole live system, beside vLLM's where there is one.

    python -m deploy.gpu_check -o gpu-check.json
    python -m deploy.gpu_check --device cpu --tiny        # tries the check itself where there is no GPU

Exit code 0: every part that ran is right. 1: one is not, or did not end in its time. 3: no GPU to be had.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.peers.children import PeerError, child, end_children_when_ended
from bench.peers.places import Places
from tidepipe_common.model_source import cache_dir

WITHIN_S = 480.0
RIGHT, WRONG, NO_GPU = 0, 1, 3
LIMITS_S = {"exactness": 150.0, "attention": 150.0, "graphs": 120.0, "throughput": 200.0, "four bits": 200.0}
"""Of each part, in the order in which they run; together they have less, and the last ones what is left."""
LEAST_S = 15.0
"""Below that a part is not begun."""


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the check itself")
    parser.add_argument("--tiny", action="store_true", help="a tiny model instead of one of a billion")
    parser.add_argument("--only", nargs="+", choices=LIMITS_S, default=list(LIMITS_S), help="parts")
    parser.add_argument("--within-s", type=float, default=WITHIN_S, help="seconds for all of it")
    parser.add_argument(
        "--vllm-python", type=Path, help="of an environment with vLLM; else this one's, if any"
    )
    options = parser.parse_args()
    end_children_when_ended()
    if (reason := obstacle(options.device)) is not None:
        print(f"gpu-check: {reason}; nothing was tried", file=sys.stderr)
        return NO_GPU
    ends = time.monotonic() + options.within_s
    report: dict[str, Any] = {"machine": machine(options.device), "device": options.device, "parts": {}}
    with tempfile.TemporaryDirectory(prefix="tidepipe-gpu-") as folder:
        settings = {
            "device": options.device,
            "tiny": options.tiny,
            "folder": folder,
            "vllm_python": str(vllm_python(options.vllm_python, options.device) or ""),
        }
        for name in options.only:
            limit = min(LIMITS_S[name], ends - time.monotonic())
            report["parts"][name] = found = run_part(name, settings, limit, options.out.parent)
            print(f"gpu-check: {name}: {said(found)}", flush=True)
            # Also what was found before something goes wrong with this process.
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    right = all(found["right"] for found in report["parts"].values())
    print(f"gpu-check: {'all right' if right else 'not right'}; {options.out}")
    return RIGHT if right else WRONG


def obstacle(device: str) -> str | None:
    """Why nothing can be tried on this device, as a sentence; None: it can."""
    import torch

    if device.partition(":")[0] == "cpu":
        return None
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU on this machine"
    return None


def machine(device: str) -> dict[str, Any]:
    """What was tried on what."""
    import torch

    known: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        known |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        known |= {"gpu_gib": round(properties.total_memory / 2**30, 1)}
    return known


def vllm_python(wanted: Path | None, device: str) -> Path | None:
    """An interpreter with vLLM; None if there is none that could use the device."""
    if wanted is not None:
        return wanted
    if importlib.util.find_spec("vllm") is not None:
        return Path(sys.executable)
    # What `python -m bench.peers` installs is for CPUs.
    there = Places(cache_dir() / "peers", "").vllm_python
    return there if device == "cpu" and there.exists() else None


def run_part(name: str, settings: dict[str, Any], limit_s: float, logs: Path) -> dict[str, Any]:
    """What a part found, in a process of its own; `right` and `seconds` are always there."""
    if limit_s < LEAST_S:
        return {"right": False, "seconds": 0.0, "why": "no time was left for it"}
    began = time.monotonic()
    log = logs / f"gpu-check-{name.replace(' ', '-')}.log"
    command = [sys.executable, "-m", "deploy.gpu_check.parts", name, json.dumps(settings)]
    found: dict[str, Any] = {"right": False}
    try:
        with child(command, log, pipes=True) as process:
            out, _ = process.communicate(timeout=limit_s)
            lines = [line for line in out.splitlines() if line.startswith("{")]
            if process.returncode == 0 and lines:
                found = json.loads(lines[-1])
            else:
                found["why"] = f"{_ended(process.returncode)}; see {log}"
    except subprocess.TimeoutExpired:
        found["why"] = f"not done after {limit_s:.0f} s; see {log}"
    except PeerError as error:
        found["why"] = str(error)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def _ended(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def said(found: dict[str, Any]) -> str:
    """A part in a line."""
    word = "right" if found["right"] else "NOT RIGHT"
    why = f": {found['why']}" if "why" in found else ""
    return f"{word}, {found['seconds']:.0f} s{why}"


if __name__ == "__main__":
    sys.exit(main())
