"""What trying a structure out may take."""

from __future__ import annotations

MAX_CPU_S = 2.0
MAX_BYTES = 512 * 1024 * 1024
MAX_WALL_S = 8.0
"""Where the machine has no core to spare, time passes without being used."""
