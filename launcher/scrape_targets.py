"""Where the processes of a local cluster show their metrics, as Prometheus reads it (file_sd_configs)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from launcher.child import Child

FILE_NAME = "metrics-targets.json"


def write_targets(folder: Path, children: Iterable[Child]) -> None:
    """One entry per process that has a metrics port: its HOST:PORT, labelled with its name."""
    groups = [
        {"targets": [child.metrics_address], "labels": {"job": "tidepipe", "process": child.name}}
        for child in children
        if child.metrics_address
    ]
    (folder / FILE_NAME).write_text(json.dumps(groups, indent=1) + "\n", encoding="utf-8")
