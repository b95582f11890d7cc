"""What of a request not every kind of instance does, by names that travel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tidepipe_common.types.sampling import SamplingParams

LOGPROBS = "logprobs"
STRUCTURES = "response_format"
CONTINUED_STRUCTURES = "continued_structures"
FORMS = "forms"
THOUGHTS = "max_reasoning_tokens"
PROMPT_LOGPROBS = "prompt_logprobs"
POOLING = "pooling"
EXTENSIONS = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids")
"""That OpenAI's completions do not know."""
OURS = (CONTINUED_STRUCTURES, FORMS, THOUGHTS, PROMPT_LOGPROBS, POOLING)
"""That only our own stages do: others hold an answer to a structure from its first token alone, and read
nothing off prompts for us."""

_SAID: Mapping[str, str] = {
    CONTINUED_STRUCTURES: "going on with an answer that is held to a structure",
    FORMS: "tools whose calls are held to a form",
    PROMPT_LOGPROBS: "log-probabilities of the prompt",
    POOLING: "embeddings",
}
FIELDS: Mapping[str, str] = {CONTINUED_STRUCTURES: STRUCTURES, FORMS: "tools"}
"""Of a request, where they are called otherwise."""


_ADAPTER = "adapter "
"""Before a fingerprint: this is the one need that an instance does not lack, but has."""


def needs_of(sampling: SamplingParams, *, begun: bool, adapter: str = "") -> frozenset[str]:
    """Those of a request; who lacks one of them cannot take it. begun: there is output already.

    adapter: its fingerprint; empty: none.
    """
    structure = sampling.structure
    asked = {
        LOGPROBS: sampling.logprobs is not None,
        STRUCTURES: structure is not None and structure.kind != "composed",
        CONTINUED_STRUCTURES: structure is not None and begun,
        FORMS: structure is not None and structure.kind == "composed",
        THOUGHTS: sampling.thought_bounded,
        PROMPT_LOGPROBS: sampling.prompt_logprobs is not None,
        POOLING: sampling.pooling is not None,
        "top_k": sampling.top_k > 0,
        "min_p": sampling.min_p > 0.0,
        "repetition_penalty": sampling.repetition_penalty != 1.0,
        "min_tokens": sampling.min_tokens > 0,
        "ignore_eos": sampling.ignore_eos,
        "stop_token_ids": bool(sampling.stop_token_ids),
    }
    names = [name for name, needed in asked.items() if needed]
    return frozenset([*names, _ADAPTER + adapter] if adapter else names)


def lacking(needs: frozenset[str], lacks: frozenset[str], adapters: frozenset[str]) -> frozenset[str]:
    """What of these needs an instance cannot do. adapters: fingerprints of those that it has."""
    missing = needs & lacks
    wanted = [need for need in needs if is_adapter(need) and need.removeprefix(_ADAPTER) not in adapters]
    return missing.union(wanted) if wanted else missing


def is_adapter(need: str) -> bool:
    """Is it an adapter's presence? Who lacks that may have it tomorrow."""
    return need.startswith(_ADAPTER)


def said(needs: Iterable[str]) -> str:
    """For people."""
    return ", ".join(_said(name) for name in sorted(needs))


def _said(name: str) -> str:
    return "the adapter that the request names" if is_adapter(name) else _SAID.get(name, name)
