"""The versions of vLLM whose scheduler we know."""

from __future__ import annotations

import re

from tidepipe_common.errors import ConfigError

LEAST, BELOW = (0, 32), (0, 33)
RANGE = f">={'.'.join(map(str, LEAST))},<{'.'.join(map(str, BELOW))}"
"""As pip reads it."""


def check_version(version: str | None = None) -> None:
    """ConfigError if this vLLM (None: the one that is installed) is another."""
    if version is None:
        import vllm

        version = vllm.__version__
    found = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if not LEAST <= found < BELOW:
        raise ConfigError(f"tidepipe works with vLLM {RANGE}, but {version} is installed")
