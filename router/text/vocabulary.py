"""The bytes that each token id stands for, so that text can be put together token by token.

Decoders of language models treat each token by itself, apart from three rules: the bytes of one character may
be spread over tokens, a run of byte tokens that is not UTF-8 becomes one replacement character per byte, and
some drop the space before the first word. Knowing the rules makes decoding exact and O(1) per token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

Piece: TypeAlias = str | bytes
"""A token's text, or bytes that are text only together with their neighbours."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Backend(Protocol):
    """The part of `tokenizers.Tokenizer` that is used here (the library has no type hints)."""

    def encode_batch_fast(self, input: Sequence[str], *, add_special_tokens: bool) -> Any:  # noqa: A002 (the library's name)
        """Tokenize; each result has `ids`."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of tokens."""

    def id_to_token(self, id: int) -> str | None:  # noqa: A002 (the library's name)
        """How a token is spelled."""

    def get_vocab_size(self) -> int:
        """Number of tokens, added ones included."""

    def get_added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id; each has `content` and `special`."""

    @property
    def decoder(self) -> Any:
        """None if tokens are joined as they are. Its pickled state is its part of tokenizer.json."""


@dataclass(frozen=True, slots=True)
class DecoderRules:
    """How tokens become text.

    byte_level: tokens are spelled in the byte alphabet of GPT-2.
    replacements: (what, by what) within each token.
    byte_fallback: tokens such as <0xE4> are bytes.
    strip: spaces dropped at the beginning of the text.
    """

    byte_level: bool = False
    replacements: tuple[tuple[str, str], ...] = ()
    byte_fallback: bool = False
    strip: int = 0


def decoder_rules(decoder: Mapping[str, Any] | None) -> DecoderRules | None:
    """Rules of a decoder as tokenizer.json describes it, or None if it is not of the two common kinds."""
    if decoder is None:
        return None
    if decoder["type"] == "ByteLevel":
        return DecoderRules(byte_level=True)
    # Llama, Mistral, Gemma, Phi-3: Replace, ByteFallback, Fuse, and sometimes Strip.
    steps = list(decoder["decoders"]) if decoder["type"] == "Sequence" else []
    replacements = []
    while steps and steps[0]["type"] == "Replace" and "String" in steps[0]["pattern"]:
        step = steps.pop(0)
        replacements.append((step["pattern"]["String"], step["content"]))
    byte_fallback = bool(steps) and steps[0]["type"] == "ByteFallback"
    if byte_fallback:
        steps.pop(0)
    if not steps or steps.pop(0)["type"] != "Fuse":
        return None
    strip = 0
    if steps and steps[0]["type"] == "Strip" and (steps[0]["content"], steps[0]["stop"]) == (" ", 0):
        strip = steps.pop(0)["start"]
    return None if steps else DecoderRules(False, tuple(replacements), byte_fallback, strip)


class Vocabulary:
    """Tokens as pieces of text. Pieces are computed when first needed, and kept."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        # Not from the whole tokenizer.json: with large vocabularies that takes seconds and much memory.
        decoder = backend.decoder
        self.rules = decoder_rules(None if decoder is None else json.loads(decoder.__getstate__()))
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {
            token_id: str(token.content) for token_id, token in added.items() if token.special
        }
        self._pieces: dict[int, Piece] = {}

    def special(self, token_id: int) -> bool:
        """True for tokens that steer the model and are no text."""
        return token_id in self.special_tokens

    def piece(self, token_id: int) -> Piece:
        """What a token stands for; empty for ids that the tokenizer does not know (padded vocabularies)."""
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._piece(token_id)
            if piece:
                # Only known tokens are kept: the ids that clients may name must not fill the memory.
                self._pieces[token_id] = piece
        return piece

    def token_bytes(self, token_id: int) -> bytes:
        """A token's bytes, special tokens included, for lists of log-probabilities."""
        piece = self.piece(token_id)
        return piece if isinstance(piece, bytes) else piece.encode()

    def _piece(self, token_id: int) -> Piece:
        token = self.backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return ""
        if self.rules is None:
            return self.backend.decode([token_id], skip_special_tokens=False)
        if self.rules.byte_level:
            try:
                return bytes(_BYTES[character] for character in token)
            except KeyError:  # an added token, spelled as it is
                return token.encode()
        for what, by in self.rules.replacements:
            token = token.replace(what, by)
        match = _BYTE_TOKEN.fullmatch(token) if self.rules.byte_fallback else None
        return bytes([int(match[1], 16)]) if match else token


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


_BYTES = _byte_alphabet()
