"""A folder of model versions: `v000001`, `v000002`, .., and `current`, which is switched at once."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tidepipe_common.errors import ConfigError
from tidepipe_common.lengths.store import CURRENT

KEPT = 3
_NAME = re.compile(r"v(\d{6})")


class ModelVersions:
    """One service's; it alone writes there."""

    def __init__(self, folder: Path) -> None:
        """Make the folder if it is not there; ConfigError if that cannot be."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # What a killed service left half done.
            for leftover in folder.glob("job-*"):
                shutil.rmtree(leftover, ignore_errors=True)
        except OSError as error:
            raise ConfigError(f"cannot use the state folder {folder}: {error.strerror or error}") from error

    @property
    def current(self) -> Path | None:
        """The version in use, or None."""
        path = self._folder / CURRENT
        return path if path.is_symlink() else None

    @property
    def next_number(self) -> int:
        """Number of the next version."""
        return 1 + max((number for number, _ in self._versions()), default=0)

    def job_folder(self) -> Path:
        """A new folder for a training."""
        return Path(tempfile.mkdtemp(prefix="job-", dir=self._folder))

    def adopt(self, model: Path, number: int) -> Path:
        """Make a finished model the current version; returns its folder. Readers see the old or the new."""
        folder = self._folder / f"v{number:06d}"
        model.rename(folder)
        link = self._folder / f".{CURRENT}-{number}"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(self._folder / CURRENT)
        for _, old in sorted(self._versions())[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def _versions(self) -> list[tuple[int, Path]]:
        return [
            (int(match[1]), path) for path in self._folder.iterdir() if (match := _NAME.fullmatch(path.name))
        ]
