"""How a batch shows its progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tidepipe.batch.progress_file import LineOutcome
from tidepipe.client.status import ClusterStatus

LINE_INTERVAL_S = 5.0


class TerminalDisplay:
    """Context manager; shows requests, output tokens per second, the current phase, and failures."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._failed = 0
        self._tokens = 0
        self._began: float | None = None
        self._phase = "starting"
        self._plain = not sys.stderr.isatty()
        self._printed = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[phase]}"),
            TextColumn("{task.fields[failed]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=self._plain,
        )
        self._task = self._bar.add_task("requests", total=total, rate="", phase="starting", failed="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(last=True)
        self._bar.stop()

    def finished(self, outcome: LineOutcome, *, resumed: bool) -> None:
        """A line is done, now or (resumed) in an earlier run."""
        self._done += 1
        self._failed += outcome.failed
        self._show()

    def tokens(self, count: int) -> None:
        """Output tokens came in."""
        if self._began is None:
            self._began = time.monotonic()
        self._tokens += count

    def status(self, status: ClusterStatus) -> None:
        """How the cluster stands."""
        phases = [
            f"{instance.status.phase.value} {instance.status.phase_age_s:.0f} s"
            for instance in status.instances
            if instance.status is not None
        ]
        self._phase = ", ".join(phases[:4]) + (", …" if len(phases) > 4 else "")
        self._show()

    def _show(self, *, last: bool = False) -> None:
        spent = time.monotonic() - self._began if self._began else 0.0
        rate = f"{self._tokens / spent:.0f} tok/s" if spent > 0 else ""
        failed = f"{self._failed} failed" if self._failed else ""
        if not self._plain:
            self._bar.update(
                self._task, completed=self._done, rate=rate, phase=self._phase, failed=f"[red]{failed}[/]"
            )
        elif last or time.monotonic() - self._printed >= LINE_INTERVAL_S:
            self._printed = time.monotonic()
            facts = [f"{self._done}/{self._total} requests", rate, self._phase, failed]
            print("; ".join(fact for fact in facts if fact), file=sys.stderr, flush=True)
