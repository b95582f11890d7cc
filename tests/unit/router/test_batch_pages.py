"""Lines are read in pages of bytes: not one is left out, and a page is never much larger than it may be."""

from __future__ import annotations

import sqlite3

import pytest

from router.batches import database, files, lines, pages
from router.batches.lines import AnsweredLine
from router.batches.records import FileRecord
from tidepipe_common.sqlite_schema import migrate


def test_pages_of_requests_and_answers_are_cut_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_BYTES", 1000)
    db = sqlite3.connect(":memory:")
    migrate(db, database._MIGRATIONS)
    given = [(number, str(number).encode(), bytes([number]) * 400) for number in range(1, 8)]
    lines.add_lines(db, "b", given)
    seen, after = [], 0
    while found := lines.unanswered(db, "b", after, 64):
        assert sum(len(line.request) for line in found) < 1000 + 400
        seen += [line.number for line in found]
        after = found[-1].number
    assert seen == [number for number, *_ in given]
    lines.record_answers(db, [("b", AnsweredLine(number, text, failed=False)) for number, _, text in given])
    record, place, content = FileRecord("f", 0, 0, "f", "batch_output", "b", False), 0, b""
    while place is not None:
        data, place = files.read(db, record, place)
        assert len(data) < 1000 + 400
        content += data
    assert content == b"".join(text for *_, text in given)
