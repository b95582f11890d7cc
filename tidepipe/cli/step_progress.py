"""Progress of a job of several steps, on stderr: bars on a terminal, one line per step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn


class StepProgress:
    """Context manager; `step` may be called as often as one likes."""

    def __init__(self) -> None:
        self._tasks: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def step(self, title: str, done: int, total: int) -> None:
        """`done` of `total` of the step called `title`."""
        if title not in self._tasks:
            self._tasks[title] = self._bars.add_task(title, total=total)
            if self._bars.disable:
                print(title, file=sys.stderr, flush=True)
        self._bars.update(self._tasks[title], completed=done)
