"""The draw itself: temperature, top-k, top-p, min-p, and the inverse of the cumulative distribution.

Probabilities are turned into integer weights (the most likely token weighs 2^40). Integer sums are exact in
any order, so a row's outcome cannot depend on the rows beside it, on threads, or on how its candidates were
found. Candidates of truncated rows stand by falling logit, equal logits by rising token id.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

WEIGHT_BITS = 40
MAX_VOCAB_SIZE = 1 << (62 - WEIGHT_BITS)
"""With more tokens a sum of weights might not fit 63 bits."""

_LOWEST_TEMPERATURE = 1e-6
"""Below it float32 divisions leave their range; logits that differ at all are then far apart anyway."""
_WIDTHS = (64, 1024, 8192)
"""Candidates looked at before a row's whole vocabulary is sorted: that costs 40 times as much as 64 do.

Constants, not the batch's largest top_k: the path of a row depends on that row alone.
"""


@dataclass(frozen=True, slots=True)
class DrawParams:
    """Per row: temperature > 0, candidates at most (vocabulary size: all), top-p, min-p, and the uniform."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor

    def select(self, rows: torch.Tensor) -> DrawParams:
        """The parameters of some rows."""
        return DrawParams(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.min_p[rows],
            self.uniform[rows],
        )


def draw(logits: torch.Tensor, best: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Draw one token per row, without top-k and top-p; `best` is each row's greatest logit."""
    return _pick(_weights(logits, best, params), params)


def draw_truncated(logits: torch.Tensor, best: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Draw one token per row among its top-k, top-p tokens."""
    vocab_size = logits.shape[-1]
    totals = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    unlimited = (params.top_k == vocab_size).nonzero().squeeze(1)
    if len(unlimited):
        weights = _weights(logits[unlimited], best[unlimited], params.select(unlimited))
        totals[unlimited] = weights.sum(-1)
    result = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    pending = torch.arange(len(logits), device=logits.device)
    for width in (*(width for width in _WIDTHS if width < vocab_size), vocab_size):
        # top-p needs the weight of all top-k candidates, so those have to fit the width.
        fits = (params.top_k[pending] < width) | (params.top_k[pending] == vocab_size)
        rows = pending if width == vocab_size else pending[fits]
        if not len(rows):
            continue
        those = logits if len(rows) == len(logits) else logits[rows]  # no copy in the common case
        values, ids, kept = _candidates(those, best[rows], totals[rows], params.select(rows), width)
        # The kept ones are certain only if no token beyond the width may equal the last of them.
        last = values.gather(1, (kept.sum(-1, keepdim=True) - 1)).squeeze(1)
        settled = (last > values[:, -1]) | (width == vocab_size)
        done = rows[settled]
        chosen = params.select(done)
        weights = _weights(values[settled], best[done], chosen).masked_fill_(~kept[settled], 0)
        result[done] = ids[settled].gather(1, _pick(weights, chosen)[:, None]).squeeze(1)
        pending = pending[~torch.isin(pending, done)]
        if not len(pending):
            break
    return result


def _candidates(
    logits: torch.Tensor, best: torch.Tensor, totals: torch.Tensor, params: DrawParams, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `width` likeliest tokens of each row: logits, ids, and which of them top-k and top-p keep."""
    vocab_size = logits.shape[-1]
    if width == vocab_size:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
    else:
        values, ids = logits.topk(width, dim=-1)
        # topk leaves equal logits in no certain order.
        ids, by_id = ids.sort(dim=-1)
        values, by_value = values.gather(1, by_id).sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, by_value)
    weights = _weights(values, best, params)
    places = torch.arange(width, device=logits.device)
    kept = places < params.top_k[:, None]
    weights.masked_fill_(~kept, 0)
    cumulative = weights.cumsum(-1)
    totals = torch.where(params.top_k < vocab_size, cumulative[:, -1], totals)
    target = params.top_p * totals.double()
    return values, ids, kept & ((cumulative - weights).double() < target[:, None])


def _weights(logits: torch.Tensor, best: torch.Tensor, params: DrawParams) -> torch.Tensor:
    temperature = params.temperature.clamp(min=_LOWEST_TEMPERATURE)[:, None]
    scaled = (logits - best[:, None]).div_(temperature)
    return scaled.exp_().mul_(2.0**WEIGHT_BITS).to(torch.int64)


def _pick(weights: torch.Tensor, params: DrawParams) -> torch.Tensor:
    """Position of the chosen token: the first one at which the cumulative weight exceeds uniform * total."""
    floor = (params.min_p * 2.0**WEIGHT_BITS).to(torch.int64)
    if bool((floor > 0).any()):
        weights.masked_fill_(weights < floor[:, None], 0)
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    # Doubles cannot tell the largest totals apart, so the product may be rounded up to the total.
    target = torch.minimum((params.uniform * total.double()).to(torch.int64), total - 1)
    return torch.searchsorted(cumulative, target[:, None], right=True).squeeze(1)
