"""Logs of a cluster: nobody else reads them, and they have an end."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

from launcher.log_files import KEPT, open_log, rotate_all, tail


def test_a_log_is_rotated_under_the_process_that_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "router.log"
    path.write_text("")
    path.chmod(0o644)
    with open_log(path) as file:
        for number in range(KEPT + 2):
            subprocess.run(["sh", "-c", f"echo part {number}; echo more"], stdout=file, check=True)
            rotate_all(tmp_path, max_bytes=5)
        subprocess.run(["echo", "now"], stdout=file, check=True)
    assert path.read_text() == "now\n"
    assert tail(path, 5) == ["now"]
    older = sorted(tmp_path.glob("router.log.*"))
    assert [one.read_text().splitlines()[0] for one in older] == ["part 4", "part 3", "part 2"]
    assert {stat.S_IMODE(one.stat().st_mode) for one in (path, *older)} == {0o600}
