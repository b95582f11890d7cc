"""What the services of a cluster wrote to their logs."""

from __future__ import annotations

from launcher.local import LocalCluster


def times_said(cluster: LocalCluster, words: str) -> int:
    """How many lines have these words."""
    assert cluster.log_dir is not None
    files = cluster.log_dir.glob("*.log*")
    return sum(words in line for file in files for line in file.read_text(errors="replace").splitlines())


def tracebacks(cluster: LocalCluster) -> list[str]:
    """Lines of defects: an error that nobody meant for a user. Nothing that a caller sends may cause one."""
    assert cluster.log_dir is not None
    logs = sorted(cluster.log_dir.glob("*.log*"))
    assert len(logs) >= len(cluster.children), logs
    return [
        f"{file.name}: {line}"
        for file in logs
        for line in file.read_text(errors="replace").splitlines()
        if "Traceback (most" in line
    ]
