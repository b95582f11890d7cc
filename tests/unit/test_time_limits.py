"""A test that hangs in spite of its limit ends the run: with a report, and with what it started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

HANG_S = 100.0
CONFTEST = """
from tests.time_limits import TimeLimits

def pytest_configure(config):
    config.pluginmanager.register(TimeLimits(config, 6))
"""
HEADER = """
import asyncio, pathlib, subprocess, threading, time, pytest

def start():
    child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
    pathlib.Path("pid").write_text(str(child.pid))
"""
HANGS = {
    "the teardown after a failure": """
@pytest.fixture
def resource():
    yield
    start()
    time.sleep(100)

@pytest.mark.timeout(0.5)
def test_it(resource):
    assert False, "the first trouble"
""",
    "the clean-up after the limit": """
@pytest.mark.timeout(0.5)
@pytest.mark.asyncio
async def test_it():
    start()
    try:
        await asyncio.sleep(100)
    finally:
        print("the first trouble")
        await asyncio.sleep(100)
""",
    "a callback that swallows the error": """
@pytest.mark.timeout(0.5)
@pytest.mark.asyncio
async def test_it():
    start()
    print("the first trouble")
    asyncio.get_running_loop().call_soon(lambda: [time.sleep(0.1) for _ in range(10)])
    await asyncio.sleep(100)
""",
    "a thread that is left": """
def test_it():
    start()
    threading.Thread(target=time.sleep, args=(100,)).start()
""",
}


def is_gone(pid: int) -> bool:
    """True as soon as it has ended; who adopts it may not take note of that."""
    for _ in range(1000):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


def start(hang: str, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir()
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(HEADER + HANGS[hang])
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "pytest_asyncio.plugin"],
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_hang_ends_with_a_report(tmp_path: Path) -> None:
    folders = {hang: tmp_path / hang.replace(" ", "-") for hang in HANGS}
    runs = {hang: start(hang, folder) for hang, folder in folders.items()}
    for hang, run in runs.items():
        written, report = run.communicate(timeout=HANG_S)
        assert run.returncode == 1, written + report
        assert "this is where it ends" in report and "Threads:" in report, hang
        if hang != "a thread that is left":
            assert "test_it" in report, hang
            assert "the first trouble" in written + report, hang
        assert is_gone(int((folders[hang] / "pid").read_text())), hang
