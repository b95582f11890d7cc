"""What is known of the model behind a server from its files on this machine, which need no weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidepipe_common.end_tokens import end_tokens
from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import read_json_object
from tidepipe_common.tokenizer_source import load_tokenizer

_ANCHOR = "\n"
_SAMPLE = "The tide turns: 2 + 2 = 4."


@dataclass(frozen=True, slots=True)
class UpstreamModel:
    """name: for people. vocab_size, context_length: tokens; 0: the files do not say. ends: of an output."""

    name: str
    vocab_size: int
    context_length: int
    ends: tuple[int, ...]
    text: ModelText


class ModelText:
    """The model's tokenizer: for servers that answer with text, and to find out whether it is theirs."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._anchor = self._ids(_ANCHOR)

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return int(self._backend.get_vocab_size())

    @property
    def sample(self) -> tuple[str, list[int]]:
        """A text, and its tokens with those that are put around it."""
        return _SAMPLE, list(self._backend.encode(_SAMPLE, add_special_tokens=True).ids)

    def continuation(self, text: str) -> list[int] | None:
        """Tokens of text that continues other text; None if none say the same."""
        whole = self._ids(_ANCHOR + text)
        ids = whole[len(self._anchor) :] if whole[: len(self._anchor)] == self._anchor else self._ids(text)
        # Some tokenizers write a space before a text that stands alone.
        said = self._backend.decode([*self._anchor, *ids], skip_special_tokens=False)
        return ids if said.endswith(_ANCHOR + text) else None

    def _ids(self, text: str) -> list[int]:
        return list(self._backend.encode(text, add_special_tokens=False).ids)


def read_model(path: Path) -> UpstreamModel:
    """From a folder with config.json and a tokenizer, or a .gguf file; ModelError if that does not do."""
    tokenizer = load_tokenizer(path)
    text = ModelText(tokenizer.backend_tokenizer)
    if path.suffix == ".gguf":
        return UpstreamModel(path.name, text.vocab_size, 0, tuple(_ids(tokenizer.eos_token_id)), text)
    config = read_json_object(path / "config.json")
    inner = config.get("text_config")
    facts: Mapping[str, Any] = {**config, **inner} if isinstance(inner, dict) else config
    vocab_size = _count(facts, "vocab_size") or text.vocab_size
    file = path / "generation_config.json"
    generation: Mapping[str, Any] = read_json_object(file) if file.is_file() else {}
    named = generation.get("eos_token_id")
    ends = [
        *_ids(facts.get("eos_token_id") if named is None else named),
        *end_tokens(path, turns=named is None),
    ]
    kept = tuple(dict.fromkeys(one for one in ends if 0 <= one < vocab_size))
    return UpstreamModel(path.name, vocab_size, _count(facts, "max_position_embeddings"), kept, text)


def _count(facts: Mapping[str, Any], name: str) -> int:
    value = facts.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ModelError(f"config.json: {name} must be a whole number")
    return value


def _ids(value: Any) -> Sequence[int]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]
