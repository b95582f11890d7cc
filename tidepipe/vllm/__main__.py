"""Our scheduler's timeline for ui.perfetto.dev: `python -m tidepipe.vllm TIMELINE.jsonl TRACE.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from tidepipe.services import find_services
from tidepipe_common.errors import ConfigError


def main() -> int:
    """The exit code."""
    if len(sys.argv) != 3:
        print("usage: python -m tidepipe.vllm TIMELINE.jsonl TRACE.json", file=sys.stderr)
        return 2
    find_services()
    from controller.engines.vllm_scheduler.record import draw

    try:
        steps = draw(Path(sys.argv[1]), Path(sys.argv[2]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {steps} steps to {sys.argv[2]}; open it in ui.perfetto.dev", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
