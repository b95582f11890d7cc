"""A tokenizer for tiny models: every byte is a token, and a few have names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from router.text.vocabulary import _BYTES

SPECIAL = ("<|im_start|>", "<|im_end|>")
"""Tokens 256 and 257."""


def _spelled() -> list[str]:
    """The bytes in GPT-2's spelling, by value, and the special tokens."""
    return [*(spelled for spelled, _ in sorted(_BYTES.items(), key=lambda item: item[1])), *SPECIAL]


def make_tokenizer(folder: Path, *more: str) -> None:
    """Write tokenizer.json and its configuration; `more` tokens are added behind id 299."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    padding = [f"<pad {number}>" for number in range(258, 300)] if more else []
    vocabulary = {token: number for number, token in enumerate([*_spelled(), *padding])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (*SPECIAL, *more)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[1]).save_pretrained(folder)


def gguf_tokenizer() -> dict[str, Any]:
    """The same as metadata of a GGUF file, with the one merge that its format wants, padded to 300 tokens."""
    tokens = [*_spelled(), "th", *(f"[PAD{number}]" for number in range(259, 300))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 2 + [1] + [5] * 41,
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.eos_token_id": 257,
    }
