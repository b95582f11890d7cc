"""Which attention back ends can serve a geometry on a GPU, the fastest first. Pure: no library is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tidepipe_common.errors import ConfigError

FLASHINFER, FLASHINFER_FA2, FLASH_ATTN, FLEX, TORCH = (
    "flashinfer",
    "flashinfer-fa2",
    "flash-attn",
    "flex",
    "torch",
)
_HALVES = (torch.float16, torch.bfloat16)
_FLASHINFER_HEAD_DIMS = (64, 128, 256)
_FLASH_ATTN_BLOCK = 256
"""Its paged kernels take blocks of a multiple of this many tokens."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the choice depends on.

    capability: the device's, (major, minor). importable: modules that Python finds.
    block_size: tokens of a KV block. Sliding windows, and how heads share keys, are no matter to any of them.
    """

    capability: tuple[int, int]
    importable: frozenset[str]
    dtype: torch.dtype
    head_dim: int
    block_size: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """usable: names, best first, `torch` always last. refused: name -> why not."""

    usable: tuple[str, ...]
    refused: dict[str, str]


def rank(facts: Facts, wanted: str = "") -> Ranking:
    """Order the back ends. wanted: only this one, with `torch` behind it; "" leaves the choice open.

    ConfigError for a name that there is not.
    """
    if wanted and wanted not in _CANDIDATES:
        raise ConfigError(f"there is no attention back end {wanted!r}; choose from {', '.join(_CANDIDATES)}")
    usable, refused = [], {}
    for name, one in _CANDIDATES.items():
        missing = one.module and one.module not in facts.importable
        why = f"no module {one.module}" if missing else one.refusal(facts)
        if wanted not in ("", name) and name != TORCH:
            why = f"{wanted} was asked for"
        if why:
            refused[name] = why
        else:
            usable.append(name)
    return Ranking(tuple(usable), refused)


def _too_old(facts: Facts, least: tuple[int, int]) -> str:
    major, minor = facts.capability
    needed = f"needs compute capability {least[0]}.{least[1]}, the device has {major}.{minor}"
    return "" if facts.capability >= least else needed


def _not_half(facts: Facts) -> str:
    return "" if facts.dtype in _HALVES else f"no {str(facts.dtype).removeprefix('torch.')}"


def _flashinfer(facts: Facts) -> str:
    # FlashInfer's own floor is 7.5, but bfloat16 and its tensor-core kernels want 8.0; what lies between is
    # not worth a path of its own.
    return (
        _too_old(facts, (8, 0))
        or _not_half(facts)
        or ("" if facts.head_dim in _FLASHINFER_HEAD_DIMS else f"no kernels for head size {facts.head_dim}")
    )


def _flash_attn(facts: Facts) -> str:
    return (
        _too_old(facts, (8, 0))
        or _not_half(facts)
        or ("" if facts.head_dim <= 256 and facts.head_dim % 8 == 0 else f"head size {facts.head_dim}")
        or (
            ""
            if facts.block_size % _FLASH_ATTN_BLOCK == 0
            else f"wants KV blocks of a multiple of {_FLASH_ATTN_BLOCK} tokens, they have {facts.block_size}"
        )
    )


def _flex(facts: Facts) -> str:
    return _too_old(facts, (8, 0)) or (
        "" if facts.head_dim >= 16 else f"head size {facts.head_dim} is below 16"
    )


def _torch(facts: Facts) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A back end: the module that it needs, or "", and why it cannot serve a geometry, or ""."""

    module: str
    refusal: Callable[[Facts], str]


_CANDIDATES: dict[str, _Candidate] = {
    FLASHINFER: _Candidate("flashinfer", _flashinfer),
    # The same library without its Hopper kernels: what remains if those are refused.
    FLASHINFER_FA2: _Candidate("flashinfer", _flashinfer),
    FLASH_ATTN: _Candidate("flash_attn", _flash_attn),
    FLEX: _Candidate("triton", _flex),
    TORCH: _Candidate("", _torch),
}
MODULES = frozenset(one.module for one in _CANDIDATES.values()) - {""}
