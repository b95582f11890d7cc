"""`python -m stage_worker.models.native.prebuild FOLDER`: compile all kernels ahead of time."""

from __future__ import annotations

import argparse
from pathlib import Path

from stage_worker.models.native.build import prebuild


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for path in prebuild(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
