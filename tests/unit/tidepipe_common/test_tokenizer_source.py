"""Tokenizers as people have them: loaded, or one line that says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_tokenizer import gguf_tokenizer, make_tokenizer
from tidepipe_common.errors import ModelError
from tidepipe_common.tokenizer_source import load_tokenizer


def test_gguf_of_a_family_that_transformers_does_not_run(tmp_path: Path) -> None:
    from tests.tiny_gguf import write_gguf
    from tests.tiny_models import make_tiny_model

    folder = make_tiny_model("smollm3", tmp_path / "model")
    path = write_gguf(folder, tmp_path / "model.gguf", metadata=gguf_tokenizer())
    tokenizer = load_tokenizer(path)
    assert tokenizer("ab<|im_end|>").input_ids == [ord("a"), ord("b"), 257]
    bare = write_gguf(folder, tmp_path / "bare.gguf", metadata={"tokenizer.ggml.model": "gpt2"}, tokens=None)
    with pytest.raises(ModelError, match=r"bare\.gguf: the file has no .*tokens"):
        load_tokenizer(bare)


CODE = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["a.B", None]}}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "copy tokenizer.json"),
        ({"tokenizer.model": "x"}, "make one, with sentencepiece installed"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json: not JSON"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json: model must be an object, got null"),
        ({"tokenizer.json": '{"model": {"vocab": {}}, "added_tokens": []}'}, "cannot load the tokenizer"),
        ({"tokenizer_config.json": json.dumps(CODE)}, "which is never run"),
        ({"tokenizer_config.json": "[" * 100_000}, r"tokenizer_config\.json: .*nested too deeply"),
        ({"tokenizer_config.json": '{"eos_token": 5}'}, "eos_token must be a string or an object"),
        (
            {"tokenizer_config.json": '{"chat_template": [{"name": "x"}]}'},
            "chat_template must be a string, or",
        ),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"x": 1}}'}, "added_tokens_decoder must be"),
        ({"tokenizer_config.json": '{"add_bos_token": "yes"}'}, "add_bos_token must be true or false"),
        (
            {"tokenizer_config.json": "{}", "special_tokens_map.json": "[]"},
            "special_tokens_map.json: must be",
        ),
        ({"tokenizer_config.json": "{}", "config.json": '{"model_type": []}'}, "model_type must be a string"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(files: dict[str, str], message: str, tmp_path: Path) -> None:
    if "tokenizer_config.json" in files:
        make_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_model_s_numbers_are_not_the_tokenizer_s(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    wrong = {"num_attention_heads": 0, "rms_norm_eps": "x", "rope_scaling": [1], "vocab_size": None}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **wrong}))
    assert load_tokenizer(tmp_path)("ab").input_ids == [ord("a"), ord("b")]


@pytest.mark.parametrize("named", [False, True])
def test_a_template_in_a_file_of_its_own_is_the_tokenizers(tmp_path: Path, named: bool) -> None:
    make_tokenizer(tmp_path)
    text = "{{ messages[0].content }}"
    template = [{"name": "default", "template": text}] if named else text
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    messages = [{"role": "user", "content": "hi"}]
    assert load_tokenizer(tmp_path).apply_chat_template(messages, tokenize=False) == "hi"
    (tmp_path / "chat_template.json").write_text('{"chat_template": 1}')
    with pytest.raises(ModelError, match="chat_template must be"):
        load_tokenizer(tmp_path)


def test_a_process_without_torch_tokenizes_and_renders_as_one_with_it(tmp_path: Path) -> None:
    """And can import it later: nothing is left behind but what transformers remembers."""
    make_tokenizer(tmp_path)
    template = "{% for one in messages %}{{ one.role }}: {{ one.content | tojson }}\n{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(template)
    program = (
        "import sys, pathlib; from tidepipe_common.tokenizer_source import leave_out_torch, load_tokenizer\n"
        "if sys.argv[2] == 'without': leave_out_torch()\n"
        "tokenizer = load_tokenizer(pathlib.Path(sys.argv[1]))\n"
        "text = tokenizer.apply_chat_template([{'role': 'user', 'content': 'h\\u00e9'}], tokenize=False)\n"
        "print(repr(text), tokenizer(text).input_ids, file=sys.stderr)\n"
        "print('torch' in sys.modules)\n"
    )
    said = {
        how: subprocess.run(
            [sys.executable, "-c", program, str(tmp_path), how], capture_output=True, text=True, check=True
        )
        for how in ("with", "without")
    }
    assert said["without"].stdout == "False\n"
    assert said["without"].stderr == said["with"].stderr.splitlines()[-1] + "\n"


TWICE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
MARKS = [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}] * 40


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [TWICE] * 40}),
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "x" * 1000}] * 200},
        ),
        ("decoder", {"type": "Sequence", "decoders": [TWICE] * 40}),
        (
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [{"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "a"}] * 40,
            },
        ),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 3}),
        (
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [*MARKS, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {
                    "<|im_end|>": {"id": "<|im_end|>", "ids": [257], "tokens": ["<|im_end|>"]}
                },
            },
        ),
    ],
)
def test_what_makes_very_much_of_a_text_is_refused(tmp_path: Path, name: str, step: object) -> None:
    make_tokenizer(tmp_path)
    load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: step}))
    with pytest.raises(ModelError, match=f"its {name} may make"):
        load_tokenizer(tmp_path)
