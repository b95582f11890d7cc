"""No line of a log is as long as a stranger likes."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import logging
import structlog
from tidepipe_common.telemetry.logs import configure_logging

configure_logging("test")
log = structlog.get_logger()
huge = "x" * 15_000_000
log.warning("refused", field=huge, parts=[huge], number=3)
try:
    raise ValueError(huge + "the end")
except ValueError:
    log.exception("failed")
logging.getLogger("uvicorn.error").error("of a library %s", huge)
"""


def test_every_field_is_clipped() -> None:
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    assert [line["event"][:9] for line in lines] == ["refused", "failed", "of a libr"]
    assert max(len(line) for line in run.stderr.splitlines()) < 16_000
    assert lines[0]["number"] == 3 and "characters" in lines[0]["field"]
    assert lines[1]["exception"].endswith("the end")
    assert {line["service"] for line in lines} == {"test"}
