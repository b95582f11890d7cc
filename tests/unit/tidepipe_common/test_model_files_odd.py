"""Files of a model's folder that are no files: refused by name, neither passed over nor waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidepipe_common.end_tokens import end_tokens
from tidepipe_common.errors import ModelError
from tidepipe_common.model_files import is_there, read_text
from tidepipe_common.tokenizer_files import check_tokenizer_files


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling"])
def test_what_is_no_file_is_said(name: str, kind: str, tmp_path: Path) -> None:
    file = tmp_path / name
    match kind:
        case "pipe":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "device":
            file.symlink_to("/dev/zero")
        case "dangling":
            file.symlink_to("nowhere")
    with pytest.raises(ModelError, match=f"{name}: (cannot be read|not a file|a link to nothing)"):
        check_tokenizer_files(tmp_path)
    assert end_tokens(tmp_path) == ()


def test_what_may_be_missing_may_be_missing(tmp_path: Path) -> None:
    assert not is_there(tmp_path / "chat_template.jinja")
    check_tokenizer_files(tmp_path)


def test_another_encoding_is_said(tmp_path: Path) -> None:
    file = tmp_path / "chat_template.jinja"
    file.write_bytes(b"caf\xe9")
    with pytest.raises(ModelError, match=r"is not UTF-8 \(byte 3\)"):
        read_text(file)
