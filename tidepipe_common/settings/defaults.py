"""Names, defaults and limits that settings share with the code that they set; each stands here alone.

Nothing is imported here: pure cores use it, too.
"""

from __future__ import annotations

from typing import Literal, get_args

Policy = Literal[
    "auto",
    "td-pipe",
    "separate",
    "hybrid",
    "padg",
    "padg-apart",
    "padg-published",
    "vllm",
    "vllm-capped",
    "gllm",
]
"""Scheduling policy of an instance. padg: prompts ride on decode steps, within the windows that the router
opens. padg-apart: in steps of their own. padg-published: the same instance, under the router's rule as
printed. vllm, vllm-capped, gllm: what other engines' schedulers do, to compare with."""
LIVE_POLICIES: tuple[Policy, ...] = get_args(Policy)

Routing = Literal[
    "auto",
    "padg",
    "padg-published",
    "padg-shuffled",
    "padg-unbounded",
    "fixed-interval",
    "round-robin",
    "least-loaded",
    "random-next",
    "power-of-two",
    "prefix",
    "most-hits",
    "roles",
    "taichi",
    "arrow",
]
"""Routing policy of a router. taichi, arrow: what those papers propose, to compare `roles` with."""
ROUTING_POLICIES: tuple[Routing, ...] = get_args(Routing)
ROUTING_WITH_ROLES: tuple[Routing, ...] = ("auto", "roles", "taichi", "arrow")
"""Under which instances may have roles, and sequences go on at another one, with their KV blocks."""
ALL_ALIKE = "routing taichi tells instances apart by the tokens of their steps, and all have the same"
MOST_THREADS = 1024
"""Of one process that computes. All start at once: a typing error must not take a machine's last one."""
USUAL_ROUTING: Routing = "prefix"
"""Of requests to instances whose policy asks for no other. It is least-loaded where nothing is found."""

BLOCK_SIZE = 16
"""Tokens per KV block."""
MAX_BLOCK_SIZE = 1024
MAX_STEP_TOKENS = 8192
"""That stages accept in one step: it bounds the size of a message with activations. So no more sequences may
run, which is as good as no limit."""

PRIORITY_S = 1.0
"""A request whose priority is higher by one waits as if it had come so many seconds later."""
TTFT_S, TPOT_S = 5.0, 0.1
"""Latency targets: EcoServe's for conversations (evaluation, ShareGPT)."""
JOURNAL_SUFFIX = ".jsonl"
"""A journal that is called so is a file; any other is a folder of them."""
MACRO_MIN, MACRO_MAX = 6, 11


def macro_fault(lower: int, upper: int) -> str:
    """Why macro instances cannot have from `lower` to `upper` instances; "" if they can.

    A split leaves upper + 1 - lower in the original, which must not be below the lower bound itself.
    """
    if 1 <= lower <= (upper + 1) // 2:
        return ""
    return (
        f"macro_min {lower} and macro_max {upper} do not fit: of {upper + 1} instances, which are split, "
        f"neither part may have less than {lower}; macro_max must be at least {max(1, 2 * lower - 1)}"
    )


"""Instances per macro instance: N_l and N_u."""
SCALING_START_S = 60.0
"""From asking for an instance until it serves, until starts were seen: a model is loaded from disk."""
SCALING_SHARE = 0.9
"""Of what instances bear that automatic scaling plans with; the rest is for bursts."""
CERTIFICATE_DAYS = 365.0
"""A cluster may be up for long, and the last thirty days of its certificates are full of warnings."""
QUANTILES = (50, 90, 99)
"""Of latencies, as reports have them."""
FILES_BYTES = 16 << 30
STORED_ITEMS = 65_536
"""Files, batches and responses of one API key."""
"""Of all files of the HTTP API together."""
FILES_LIFETIME_S = 30 * 24 * 3600
RESPONSES_BYTES, RESPONSES_COUNT = 1 << 30, 65_536
"""Of all responses that are kept."""
BACKGROUND_RESPONSES, BACKGROUND_RESPONSE_BYTES = 256, 256 << 20
"""Responses in the background that wait or run, and their prompts in memory."""

WINDOW, LEAST_WINDOW = 4096, 32
"""Newest observations that the length predictor keeps. Below the least an estimate of the outer levels would
be noise, so the prior answers."""
SIGNAL_SAMPLES = 4096
"""Answers with length signals that the predictor keeps to train on, of each model."""
FIRST_TRAINING_AFTER, LEAST_ANSWERS = 400, 50
"""Answers before the predictor's first training; and at all, for fewer teach nothing."""

STOPPED_S = 20.0
"""A process that is stopped (SIGSTOP) for this long is hung: it answers nobody, and does not die."""
