"""A real small model with marks for thoughts, and a template that can begin one."""

from __future__ import annotations

import json
from pathlib import Path

MARKS = {"<repo_name>": "<think>", "<reponame>": "</think>"}
"""Tokens that it has and never writes by itself, and what they are called here."""


def thinking_model(source: Path, folder: Path) -> Path:
    """The model in `source` as a model that thinks where `enable_thinking` is true, in a new folder."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for token in tokenizer["added_tokens"]:
        if (mark := MARKS.get(token["content"])) is not None:
            vocabulary[mark] = vocabulary.pop(token["content"])
            token["content"] = mark
    template = (source / "chat_template.jinja").read_text().rstrip()
    template += "{% if add_generation_prompt and enable_thinking %}{{ '<think>\n' }}{% endif %}"
    for name, text in (("tokenizer.json", json.dumps(tokenizer)), ("chat_template.jinja", template)):
        (folder / name).unlink()
        (folder / name).write_text(text)
    return folder
