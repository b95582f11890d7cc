"""The end of a run in which a test, or what follows it, hangs in spite of its limit.

pytest-timeout raises an error in the test, once. It is lost where it meets a callback of asyncio, which keeps
to itself what callbacks raise. Nothing ends a clean-up that hangs after it; nor the teardown of a test that
has failed, as a failure cancels this limit and pytest's own `faulthandler_timeout`. So what is not over
`GRACE_S` after the limit ends here: with a report, without what was started, and with exit code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import sys
import threading
import traceback
from collections.abc import Generator

import psutil
import pytest

GRACE_S = 60.0
"""How long a test may take to clean up after its limit, and a run after its last test."""


class TimeLimits:
    """Plugin that ends a run: `grace_s` after a test's limit, and as long after the last test."""

    def __init__(self, config: pytest.Config, grace_s: float = GRACE_S) -> None:
        self._config = config
        self._grace_s = grace_s
        self._timer: threading.Timer | None = None
        self._testing = True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if limit_s := self._limit_s(item):
            self._watch(limit_s + self._grace_s, f"{item.nodeid}, whose limit is {limit_s:g} s,")
        try:
            return (yield)
        finally:
            self._cancel()

    def pytest_enter_pdb(self) -> None:
        self._cancel()

    def pytest_sessionfinish(self) -> None:
        self._testing = False
        self._watch(self._grace_s, "a run whose tests are over")

    def _limit_s(self, item: pytest.Item) -> float:
        """The limit of pytest-timeout; 0 is none."""
        marker = item.get_closest_marker("timeout")
        if marker is not None:
            return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
        given = self._config.getoption("timeout")
        return float(self._config.getini("timeout") or 0 if given is None else given)

    def _watch(self, seconds: float, what: str) -> None:
        self._timer = threading.Timer(seconds, self._end, (f"{what} did not end within {seconds:g} s",))
        self._timer.daemon = True
        self._timer.start()

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end(self, why: str) -> None:
        try:
            self._report(why)
        except Exception:
            traceback.print_exc()
        finally:
            # Whatever became of the report: a disk may be full, a pipe closed.
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            os._exit(pytest.ExitCode.TESTS_FAILED)

    def _report(self, why: str) -> None:
        self._show_what_is_written()
        print(f"\n\n{why}: this is where it ends.\nThreads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.stderr)
        print("Tasks:", file=sys.stderr)
        for task in [one for one in gc.get_objects() if issubclass(type(one), asyncio.Task)]:
            if not task.done():
                task.print_stack(file=sys.stderr)
        sys.stderr.flush()
        # What failed before; a worker of pytest-xdist has told that already.
        if (
            self._testing
            and (reporter := self._config.pluginmanager.getplugin("terminalreporter")) is not None
        ):
            reporter.summary_errors()
            reporter.summary_failures()
            reporter.short_test_summary()
            sys.stdout.flush()

    def _show_what_is_written(self) -> None:
        """From here on to the terminal, and so far what the test wrote."""
        capture = self._config.pluginmanager.getplugin("capturemanager")
        if self._testing and capture is not None:
            capture.suspend_global_capture(in_=True)
            for text in capture.read_global_capture():
                print(text, file=sys.stderr)
