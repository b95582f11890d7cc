"""The tokens that end an output by what lies beside the weights: the tokenizer's and the chat template's.

Many fine-tuned models name their end of turn nowhere else; without it, their answers would run on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import read_json_object, read_text

_LARGEST_FILE = 256 << 20
_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>")
"""What common chat templates write behind an answer."""


def end_tokens(folder: Path, *, turns: bool = True) -> tuple[int, ...]:
    """Ids of the tokenizer's EOS token, and, if `turns`, of the end of turn that the chat template writes.

    Files that are not there or damaged say nothing: the router, which needs them, says what is wrong.
    """
    config = _object(folder / "tokenizer_config.json")
    names = [
        _text(config.get("eos_token")) or _text(_object(folder / "special_tokens_map.json").get("eos_token"))
    ]
    if turns:
        template = "".join(_templates(folder, config))
        names += [name for name in _END_OF_TURN if name in template]
    wanted = [name for name in names if name]
    if not wanted:
        return ()
    known = dict(_added(config.get("added_tokens_decoder")))
    if not all(name in known for name in wanted):
        # Large, so only if need be: the vocabulary is in there.
        tokenizer = _object(folder / "tokenizer.json")
        listed = tokenizer.get("added_tokens")
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("id"), int):
                known.setdefault(str(entry.get("content")), entry["id"])
        model = tokenizer.get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocabulary, dict) and names[0] and isinstance(vocabulary.get(names[0]), int):
            known.setdefault(names[0], vocabulary[names[0]])
    return tuple(dict.fromkeys(known[name] for name in wanted if name in known))


def _added(decoder: Any) -> Iterator[tuple[str, int]]:
    if isinstance(decoder, dict):
        for number, entry in decoder.items():
            if str(number).isdecimal() and isinstance(entry, dict):
                yield str(entry.get("content")), int(number)


def _templates(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Chat templates in files of their own, or in the configuration; as one text or a list of named ones."""
    for place in (config, _object(folder / "chat_template.json")):
        template = place.get("chat_template")
        if isinstance(template, str):
            yield template
        for entry in template if isinstance(template, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("template"), str):
                yield entry["template"]
    try:
        yield read_text(folder / "chat_template.jinja")
    except ModelError:
        return


def _text(token: Any) -> str:
    """How a token is spelled; older files write an object."""
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else ""


def _object(file: Path) -> Mapping[str, Any]:
    try:
        return read_json_object(file, _LARGEST_FILE)
    except ModelError:
        return {}
