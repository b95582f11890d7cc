"""The most likely tokens of rows of scores."""

from __future__ import annotations

import torch

from tidepipe_common.limits import MAX_LOGPROBS


def top_tokens(scores: torch.Tensor, count: int = MAX_LOGPROBS) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` scores of each row, best first, and the tokens that they are of."""
    if not count:
        return scores[:, :0], scores[:, :0].long()
    # Always as many as anyone may ask for: which of equal tokens topk returns depends on how many it returns,
    # and a row's answer must not depend on its neighbours' wishes.
    ids = scores.topk(min(MAX_LOGPROBS, scores.shape[-1]), dim=-1).indices.sort(-1).values
    values, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values[:, :count], ids.gather(1, order)[:, :count]
