"""Runs the service."""

import sys

from stage_worker.service import main

sys.exit(main())
