"""Runs the service."""

import sys

from controller.service import main

sys.exit(main())
