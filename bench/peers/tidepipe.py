"""TidePipe itself: the whole live system, router, controller, predictor and stage workers over gRPC."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.peers.children import RUN_S, Figures, PeerError, child
from bench.peers.places import Places


@dataclass(frozen=True, slots=True)
class TidePipe:
    """flags: of `tidepipe bench throughput`. gguf: kind of the file that is the model, if it is none."""

    places: Places
    name: str
    flags: tuple[str, ...]
    gguf: str | None = None

    @property
    def configuration(self) -> str:
        """In words."""
        return f"tidepipe bench throughput {' '.join(self.flags)}" + (f" ({self.gguf})" if self.gguf else "")

    def measure(self, workload: Path, logs: Path) -> Figures:
        """One run, with a cluster of its own."""
        command = [sys.executable, "-m", "tidepipe.cli.main", "bench", "throughput", str(workload)]
        model = ["--model", str(self.places.gguf(self.gguf)) if self.gguf else self.places.model, "--json"]
        log = logs / f"{self.name}.log"
        with child([*command, *model, *self.flags], log, pipes=True) as process:
            said, _ = process.communicate(timeout=RUN_S)
            if process.returncode:
                raise PeerError(f"{self.name} failed; see {log}")
        report = json.loads(said.splitlines()[-1])
        return {"short": report["failed"], **report}
