"""What the files of a tokenizer must look like, before a library makes a tokenizer of them.

The library reads them as they come, and trips over a wrong one wherever it happens to use it first.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import is_there, read_json_object, read_text
from tidepipe_common.text.text import quoted

_LARGEST_TOKENIZER = 256 << 20
_MOST_GROWTH = 16
"""Of a text by what is done to it: a sequence of small steps would be memory without an end."""
_SAMPLE = "aZ 0_.-\n\u00e9\u6f22"
_LARGEST_CONFIG = 64 << 20
"""Of tokenizer_config.json, which may list each added token."""


def check_tokenizer_files(folder: Path) -> None:
    """ModelError for the first of the small files that cannot be used, which it names."""
    file = folder / "tokenizer_config.json"
    if is_there(file):
        config = read_json_object(file, _LARGEST_CONFIG)
        for key, (fits, wanted) in _FIELDS.items():
            if config.get(key) is not None and not fits(config[key]):
                raise ModelError(f"{file}: {key} must be {wanted}, got {quoted(config[key])}")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if is_there(folder / name):
            read_json_object(folder / name, _LARGEST_CONFIG)
    if is_there(folder / "chat_template.jinja"):
        read_text(folder / "chat_template.jinja")


def template_apart(folder: Path) -> str | dict[str, str] | None:
    """The chat template, or several by name, of chat_template.json, which models that see come with."""
    file = folder / "chat_template.json"
    if not is_there(file):
        return None
    template = read_json_object(file, _LARGEST_CONFIG).get("chat_template")
    if not _is_template(template):
        raise ModelError(
            f"{file}: chat_template must be a text or a list of named ones, got {quoted(template)}"
        )
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return str(template)


def check_tokenizer_json(folder: Path) -> None:
    """ModelError if tokenizer.json is there and plainly not what it should be."""
    file = folder / "tokenizer.json"
    if not is_there(file):
        return
    content = read_json_object(file, _LARGEST_TOKENIZER)
    for key, kind, wanted in (("model", dict, "an object"), ("added_tokens", list, "a list")):
        if not isinstance(content.get(key), kind):
            raise ModelError(f"{file}: {key} must be {wanted}, got {quoted(content.get(key))}")


def check_growth(backend: Any, source: str) -> None:
    """ModelError if what the library does to each text, or to each answer, may make very much of it.

    backend: a tokenizer of the library, as it was read: each way to one ends there.
    """
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        step = getattr(backend, name)
        if step is not None and _growth(json.loads(step.__getstate__())) > _MOST_GROWTH:
            raise ModelError(
                f"{source}: its {name} may make more than {_MOST_GROWTH} times as much of a text; "
                "take another tokenizer.json"
            )


def _growth(step: Any) -> float:
    """How many characters, or tokens, a step of the library may make of one."""
    match step:
        case {"type": "Sequence", **rest}:
            steps = next((value for value in rest.values() if isinstance(value, list)), [])
            return math.prod(map(_growth, steps))
        case {"type": "Replace", "content": str(content), "pattern": {"String": str(text)}} if text:
            return max(1.0, len(content) / len(text))
        case {"type": "Replace", "content": str(content), "pattern": pattern}:
            return len(content) + float(_matches_nothing(pattern)) or 1.0
        case {"type": "Prepend", "prepend": str(text)}:
            return max(1.0, float(len(text)))
        case {"type": "ByteLevel"}:
            return 4.0
        case {"type": "TemplateProcessing", "single": list(single), "special_tokens": dict(ids)}:
            names = [piece["SpecialToken"]["id"] for piece in single if "SpecialToken" in piece]
            return float(len(single) + sum(len(ids[name]["ids"]) for name in names if name in ids))
    return 1.0


def _matches_nothing(pattern: Any) -> bool:
    """Between two characters, where what it is replaced by comes on top of them."""
    try:
        found = re.finditer(pattern["Regex"], _SAMPLE)
        return any(one.end() == one.start() for one in found)
    except (KeyError, TypeError, re.error):
        # An empty text, or an expression of the library's own dialect.
        return True


def tokenizer_facts(folder: Path) -> Mapping[str, Any]:
    """What config.json says that matters to the tokenizer; nothing if there is no such file."""
    file = folder / "config.json"
    if not is_there(file):
        return {}
    config = read_json_object(file)
    said = {key: config[key] for key in _FACTS if config.get(key) is not None}
    for key, value in said.items():
        if not isinstance(value, str):
            raise ModelError(f"{file}: {key} must be a string, got {quoted(value)}")
    # Tokenizers of some families are mended by the release that wrote them.
    version = said.get("transformers_version", "0")
    if not _VERSION.fullmatch(version):
        raise ModelError(f"{file}: transformers_version must be a version, got {quoted(version)}")
    return said


_VERSION = re.compile(r"\d+(\.\d+)*([.-]?(a|b|rc|dev|post)\d*)?(\+[a-z0-9.]+)?")
_FACTS = ("model_type", "model_name", "tokenizer_class", "transformers_version")


def _is_token(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str))


def _is_template(value: Any) -> bool:
    if isinstance(value, list):
        texts = [entry.get(key) for entry in value if isinstance(entry, dict) for key in ("name", "template")]
        return len(texts) == 2 * len(value) and all(isinstance(text, str) for text in texts)
    return isinstance(value, str)


def _is_added(value: Any) -> bool:
    return isinstance(value, dict) and all(
        number.isdecimal() and int(number) < 2**32 and _is_token(entry) for number, entry in value.items()
    )


def _of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


_TOKEN = (_is_token, "a string or an object with its content")
_FIELDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"), _TOKEN
    ),
    **dict.fromkeys(
        ("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces"),
        (_of(bool), "true or false"),
    ),
    "tokenizer_class": (_of(str), "a string"),
    "chat_template": (_is_template, "a string, or a list of objects with name and template"),
    "added_tokens_decoder": (_is_added, "an object of token ids and what they stand for"),
    "extra_special_tokens": (_of(list, dict), "a list or an object"),
    "additional_special_tokens": (_of(list, dict), "a list or an object"),
}
