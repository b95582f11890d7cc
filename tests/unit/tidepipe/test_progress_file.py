"""The progress file keeps finished lines through crashes."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tidepipe.batch.progress_file import LineOutcome, ProgressFile
from tidepipe_common.errors import ConfigError, StorageError


def outcome(number: int, digest: str = "d") -> LineOutcome:
    """A finished line."""
    return LineOutcome(number, digest, False, 3, 4)


def write(target: Path, numbers: list[int]) -> str:
    """A run that finishes these lines, in this order, and stops."""
    progress = ProgressFile(target)
    for number in numbers:
        progress.append(outcome(number), f'{{"line": {number}, "text": "\\ttab"}}\n'.encode())
    progress.close()
    return progress.run_id


def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    target = tmp_path / "out"
    run_id = write(target, [3, 1, 2])
    whole = (tmp_path / "out.progress").read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / "out.progress").write_bytes(whole[:size])
        progress = ProgressFile(target)
        expected = max(0, whole[:size].count(b"\n") - 1)
        assert progress.done == expected
        assert (progress.run_id == run_id) == (b"\n" in whole[:size])
        assert progress.find(3, "another digest") is None
        for number in [3, 1, 2][expected:]:
            progress.append(outcome(number), f'{{"line": {number}, "text": "\\ttab"}}\n'.encode())
        progress.finish([1, 2, 3])
        assert [line[:10] for line in target.read_text().splitlines()] == [
            '{"line": 1',
            '{"line": 2',
            '{"line": 3',
        ]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        target.unlink()


def test_lines_that_earlier_versions_wrote_of_cut_answers_are_not_finished(tmp_path: Path) -> None:
    progress = ProgressFile(tmp_path / "out")
    for number, reason in enumerate(("stop", "cancelled", "deadline"), start=1):
        choices = f'[{{"text": "\\"finish_reason\\": \\"cancelled\\"", "finish_reason": "{reason}"}}]'
        progress.append(outcome(number), f'{{"response": {{"body": {{"choices": {choices}}}}}}}\n'.encode())
    progress.close()
    resumed = ProgressFile(tmp_path / "out")
    assert [bool(resumed.find(number, "d")) for number in (1, 2, 3)] == [True, False, False]
    resumed.close()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    first = ProgressFile(tmp_path / "out")
    with pytest.raises(ConfigError, match="another run"):
        ProgressFile(tmp_path / "out")
    first.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="cannot write"):
        ProgressFile(tmp_path / "missing" / "out")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_fitted_on_a_full_disk_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    line = b'{"text": "' + b"x" * 1000 + b'"}\n'
    with largest_file(10), pytest.raises(StorageError, match=r"cannot write .*out.progress: "):
        ProgressFile(target)
    progress = ProgressFile(target)
    with largest_file(5000), pytest.raises(StorageError, match=r"cannot write .*out.progress: "):
        for number in range(1, 9):
            progress.append(outcome(number), line)
    kept = progress.done
    assert 3 <= kept <= 4
    with largest_file(5000):
        progress.close()
    resumed = ProgressFile(target)
    assert resumed.done == kept
    for number in range(kept + 1, 9):
        resumed.append(outcome(number), line)
    with largest_file(5000), pytest.raises(StorageError, match=r"cannot write .*out: "):
        resumed.finish(range(1, 9))
    assert [path.name for path in tmp_path.iterdir()] == ["out.progress"]
    resumed.close()
    ProgressFile(target).finish(range(1, 9))
    assert target.read_bytes() == line * 8
