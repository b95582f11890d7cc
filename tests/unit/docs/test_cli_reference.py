"""The reference of the command line is what the commands say."""

from __future__ import annotations

from pathlib import Path

from tidepipe.cli.reference import reference

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "python -m tidepipe.cli.reference > docs/reference/cli.md"
