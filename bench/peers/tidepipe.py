"""TidePipe itself: the whole live system, router, controller, predictor and stage workers over gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.peers.children import RUN_S, Figures, PeerError
from bench.peers.places import Places


@dataclass(frozen=True, slots=True)
class TidePipe:
    """flags: of `tidepipe bench throughput`."""

    places: Places
    name: str
    flags: tuple[str, ...]

    @property
    def configuration(self) -> str:
        """In words."""
        return f"tidepipe bench throughput {' '.join(self.flags)}"

    def measure(self, workload: Path, logs: Path) -> Figures:
        """One run, with a cluster of its own."""
        command = [sys.executable, "-m", "tidepipe.cli.main", "bench", "throughput", str(workload)]
        model = ["--model", self.places.model, "--json"]
        done = subprocess.run(
            [*command, *model, *self.flags], capture_output=True, text=True, timeout=RUN_S, check=False
        )
        (logs / f"{self.name}.log").write_text(done.stderr)
        if done.returncode:
            raise PeerError(f"{self.name} failed; see {logs / self.name}.log")
        report = json.loads(done.stdout.splitlines()[-1])
        return {"short": report["failed"], **report}
