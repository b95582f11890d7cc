"""The lines of a batch that are finished, on disk: OUT.jsonl.progress.

First a line that names the run, then one per finished request: a JSON head, a tab, the output line. Heads
carry the number and the digest of the input line, so an input that was changed is noticed line by line. Lines
are appended in the order in which requests finish; whatever a crash tore off at the end is cut off. A line
whose answer was cut, as earlier versions wrote them, is none that is finished.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tidepipe_common.errors import ConfigError, StorageError
from tidepipe_common.openai.answers import FINISH_REASONS

SYNC_INTERVAL_S = 1.0
TEMPORARY_EXTRA = 10
"""Characters that the names of the files beside the output have more than its own."""


@dataclass(frozen=True, slots=True)
class LineOutcome:
    """What became of an input line. Tokens count whether it failed or not; cached ones are prompt tokens."""

    number: int
    digest: str
    failed: bool
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0


def progress_path(output: Path) -> Path:
    """Where the progress of a batch with this output is kept."""
    return output.with_name(output.name + ".progress")


class ProgressFile:
    """Owns the file, and with it the right to write OUT; a second run on the same OUT is refused."""

    def __init__(self, output: Path) -> None:
        """Open or create; ConfigError if that is impossible or another run has it, StorageError if the disk
        is full."""
        self._output = output
        self._path = progress_path(output)
        self._file = _lock(self._path)
        self._done: dict[int, tuple[LineOutcome, int, int]] = {}
        self._synced = time.monotonic()
        self._end = 0
        try:
            with self._storing(self._path):
                self.run_id = self._load()
        except BaseException:
            self._file.close()
            raise

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._path

    @property
    def done(self) -> int:
        """Number of finished lines."""
        return len(self._done)

    def find(self, number: int, digest: str) -> LineOutcome | None:
        """The outcome of that input line, if it is finished and has not changed since."""
        entry = self._done.get(number)
        return entry[0] if entry and entry[0].digest == digest else None

    def append(self, outcome: LineOutcome, output_line: bytes) -> None:
        """Record a finished line; it survives the end of this process (and, a second later, a power cut).

        StorageError if it does not fit on the disk: all earlier ones are kept.
        """
        head = json.dumps(asdict(outcome)).encode() + b"\t"
        begin = self._end + len(head)
        with self._storing(self._path):
            self._write(head + output_line)
            self._done[outcome.number] = (outcome, begin, len(output_line))
            if time.monotonic() - self._synced >= SYNC_INTERVAL_S:
                self._sync()

    def finish(self, numbers: Iterable[int]) -> None:
        """Write OUT with the lines of these inputs, in that order, in one stroke; then remove this file.

        StorageError if OUT cannot be written: this file stays.
        """
        temporary = self._output.with_name(f".{self._output.name}.{uuid.uuid4().hex[:8]}")
        with self._storing(self._output):
            try:
                with temporary.open("wb") as target:
                    for number in numbers:
                        _, begin, length = self._done[number]
                        target.write(os.pread(self._file.fileno(), length, begin))
                    target.flush()
                    os.fsync(target.fileno())
                temporary.replace(self._output)
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(self._output.parent)
        self._path.unlink()
        self._file.close()

    def close(self) -> None:
        """Keep what there is for the next run."""
        if not self._file.closed:
            with contextlib.suppress(OSError):  # a full disk: said when it was met
                self._sync()
            if not self._done:
                self._path.unlink(missing_ok=True)
            self._file.close()

    @contextlib.contextmanager
    def _storing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror or error}") from error

    def _write(self, data: bytes) -> None:
        """Append all of it, or nothing. Past the buffer, which only reads: what it could not write it would
        try again at the end."""
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        except OSError:
            os.ftruncate(self._file.fileno(), self._end)
            raise
        self._end += len(data)

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def _load(self) -> str:
        """Read what an earlier run left, cut off a torn end, and return the run's name."""
        good = 0
        run_id = ""
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            head, tab, output_line = line.partition(b"\t")
            content = _parse(head)
            if not run_id:
                run_id = str(content.get("run", ""))
                if not run_id:
                    break
            elif tab and (outcome := _outcome(content)):
                if _was_cut(output_line):
                    self._done.pop(outcome.number, None)
                else:
                    self._done[outcome.number] = (outcome, good + len(head) + 1, len(output_line))
            else:
                break
            good += len(line)
        if not run_id:
            self._done.clear()
            good = 0
        os.ftruncate(self._file.fileno(), good)
        self._end = good
        if not run_id:
            run_id = uuid.uuid4().hex
            self._write(json.dumps({"run": run_id}).encode() + b"\n")
            self._sync()
        return run_id


def _lock(path: Path) -> BinaryIO:
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise ConfigError(f"another run is writing this output ({path} is locked)") from error
        # The run that had it may have removed it between our open and our lock.
        if path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return file
        file.close()


def _parse(head: bytes) -> dict[str, Any]:
    try:
        content = json.loads(head)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _was_cut(output_line: bytes) -> bool:
    """True for an answer with an end that no whole one has, such as "cancelled"."""
    if b'"finish_reason": "' not in output_line:
        return False
    try:
        choices = json.loads(output_line)["response"]["body"]["choices"]
        return any(choice["finish_reason"] not in FINISH_REASONS for choice in choices)
    except (ValueError, KeyError, TypeError):
        return True


def _outcome(content: dict[str, Any]) -> LineOutcome | None:
    try:
        return LineOutcome(**content)
    except TypeError:
        return None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
