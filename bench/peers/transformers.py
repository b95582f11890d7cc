"""transformers' `generate`, padded, in batches sorted by length."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.peers.children import Figures, Script, child
from bench.peers.places import SCRIPTS, Places

BATCH = 16
THREADS = 2


@dataclass(frozen=True, slots=True)
class Transformers:
    """One process on all cores."""

    places: Places

    name = "transformers"

    @property
    def configuration(self) -> str:
        """In words."""
        return f"generate in bfloat16, batches of {BATCH} sorted by length, {THREADS} threads"

    def measure(self, workload: Path, logs: Path) -> Figures:
        """One run; the model is loaded before it begins."""
        settings = {
            "workload": str(workload),
            "model": str(self.places.model_folder),
            "batch": BATCH,
            "threads": THREADS,
        }
        command = [sys.executable, SCRIPTS / "transformers_offline.py", json.dumps(settings)]
        log = logs / f"{self.name}.log"
        with child(command, log, env={"HF_HUB_OFFLINE": "1"}, pipes=True) as process:
            script = Script(process, log)
            script.wait_ready()
            script.go()
            return script.result()
