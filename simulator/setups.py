"""The policies that offline runs compare, and the knobs that are scanned: baselines at their best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from controller.scheduler.policies.catalog import Knob, Knobs

_VLLM: Mapping[str, Sequence[Knob]] = {
    "token_budget": (192, 256, 384, 512, 768, 1024, 2048),
    "max_running": (256, 0),
    "extra_batches": (0, 1),
}

SCANS: Mapping[str, Mapping[str, Sequence[Knob]]] = {
    # It takes its own from the cost model.
    "auto": {},
    "td-pipe": {
        "prefill_tokens": (256, 512, 1024),
        "switching": ("hysteresis:0.9", "intensity:0.05"),
        "extra_batches": (0, 1),
    },
    "separate": {"token_budget": (512, 1024, 2048), "extra_batches": (0, 1)},
    "hybrid": {"token_budget": (192, 256, 320, 384, 448, 512, 768, 1024, 2048), "extra_batches": (0, 1)},
    "vllm": _VLLM,
    "vllm-capped": _VLLM,
    "gllm": {
        "token_budget": (192, 256, 384, 512, 768, 1024, 2048),
        "iterations": (2, 8),
        "extra_batches": (0, 1),
    },
    "tp-separate": {"token_budget": (1024, 2048, 4096)},
    "tp-hybrid": {"token_budget": (256, 512, 1024, 2048)},
}
"""By policy, as users name it, the knobs that are tried. The last two have one tensor-parallel stage."""
POLICIES = tuple(SCANS)


def scan(name: str) -> list[Knobs]:
    """All combinations of a policy's knobs; only the defaults for one without any."""
    axes = SCANS.get(name, {})
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
