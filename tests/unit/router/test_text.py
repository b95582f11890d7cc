"""Detokenization and stop strings: pieces of any size give what the whole gives."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from router.requests.output import StopMatcher
from router.requests.text_port import TooManyTokensError
from router.text.template_trial import try_out
from router.text.tokenizer import TextProcessor
from tidepipe_common.errors import InvalidRequestError, ModelError
from tidepipe_common.types.request import ChatTurn

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  Leading spaces,\n\n\ttabs and  double  spaces ",
    "Grüße aus Köln! 你好,世界。こんにちは",
    "👩‍👩‍👧 family, 🇩🇪 flag, e\u0301 combining, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
)
SPECIAL = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}{{ '\n' + m.content }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}"
)


@cache
def byte_level() -> TextProcessor:
    """As GPT-2, Llama 3, Qwen, SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=SPECIAL)
    )
    tokenizer.add_tokens(
        [AddedToken("<｜tool▁call｜>", normalized=False), AddedToken("Ġx", normalized=False)]
    )
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE))


@cache
def byte_fallback() -> TextProcessor:
    """As Llama 2, Mistral, Phi-3: words with their space in front, bytes for what the vocabulary lacks."""
    spelled = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "世", "▁▁a"]
    vocabulary = {token: i for i, token in enumerate(spelled)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


@cache
def other_kind() -> TextProcessor:
    """A decoder whose rules are not known: the Metaspace of older conversions of sentencepiece models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    return TextProcessor(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


PROCESSORS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "other_kind": other_kind}


def cut(items: Sequence[int], sizes: Sequence[int]) -> list[Sequence[int]]:
    """The items in pieces of these sizes, which repeat."""
    pieces: list[Sequence[int]] = []
    begin = 0
    while begin < len(items):
        pieces.append(items[begin : begin + sizes[len(pieces) % len(sizes)]])
        begin += len(pieces[-1])
    return pieces


def detokenize(
    processor: TextProcessor, ids: Sequence[int], sizes: Sequence[int], skip: bool, prompt: Sequence[int] = ()
) -> list[str]:
    detokenizer = processor.new_detokenizer(prompt, skip)
    return [*(detokenizer.push(piece) for piece in cut(ids, sizes)), detokenizer.flush()]


ids = st.lists(st.integers(0, 330), max_size=31)
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", PROCESSORS)
@given(ids=ids, sizes=sizes, skip=st.booleans())
def test_pieces_of_any_tokens_make_the_whole(kind: str, ids: list[int], sizes: list[int], skip: bool) -> None:
    processor = PROCESSORS[kind]()
    assert "".join(detokenize(processor, ids, sizes, skip)) == processor.decode(ids, skip)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
@given(text=st.one_of(st.text(max_size=60), st.sampled_from(TEXTS)), sizes=sizes)
def test_pieces_of_real_text_are_whole_characters(kind: str, text: str, sizes: list[int]) -> None:
    processor = PROCESSORS[kind]()
    text = text.replace("\N{REPLACEMENT CHARACTER}", "").replace("<", "")
    pieces = detokenize(processor, processor.encode(text), sizes, skip=True)
    assert "".join(pieces) == (text.replace("▁", " ") if kind == "byte_fallback" else text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_text_flows() -> None:
    hello = byte_level().encode("Hello, 世界")
    pieces = detokenize(byte_level(), hello, [1], skip=True)
    assert pieces[0] and pieces[-1] == ""
    # One endless run of byte tokens, as Thai is for Llama 2: late, but not at the end.
    thai = "สวัสดีครับ" * 10
    pieces = detokenize(byte_fallback(), byte_fallback().encode(thai), [1], skip=True)
    assert "".join(pieces) == thai
    assert max(map(len, pieces)) <= 12


def test_the_first_word_behind_a_prompt_keeps_its_space() -> None:
    processor = byte_fallback()
    text, output = processor.encode("a"), processor.encode("bad")
    for prompt, expected in (((), "bad"), (text, " bad"), ([0], "bad")):
        assert "".join(detokenize(processor, output, [1], True, prompt)) == expected


def test_chat_uses_the_models_template() -> None:
    processor = byte_level()
    turns = (ChatTurn("system", "Be brief."), ChatTurn("user", "你好", name="Ann"))
    ids = processor.encode_chat(turns)
    assert processor.decode(ids, skip_special_tokens=False) == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user Ann\n你好<|im_end|><|im_start|>assistant\n"
    )
    assert ids[0] == 0, "special tokens of the template are single tokens"
    with pytest.raises(InvalidRequestError, match="unknown role critic"):
        processor.encode_chat([ChatTurn("critic", "no")])
    with pytest.raises(InvalidRequestError, match="empty"):
        processor.encode_chat([])
    with pytest.raises(InvalidRequestError, match="no chat template"):
        byte_fallback().encode_chat(turns)
    with pytest.raises(InvalidRequestError, match="surrogate"):
        processor.encode("\ud800")


@pytest.mark.parametrize(
    ("tool", "calls", "message"),
    [
        ("x", "", "tools.0 is not JSON"),
        ("null", "", 'tools.0 must have {"type": "function"'),
        ('{"type": "function", "function": {}}', "", "tools.0 must have a function with a name"),
        (
            '{"type": "function", "function": {"name": "f", "parameters": []}}',
            "",
            "JSON schema as parameters",
        ),
        ('{"type": "function", "function": {"name": "f", "name": "g"}}', "", "the name 'name' twice"),
        ("", "{", "tool_calls is not JSON"),
        ("", "5", "tool_calls must be a list of calls, got the number 5"),
        ("", "[{}]", "tool_calls call 0 must have a function with a name"),
    ],
)
def test_tools_and_calls_are_looked_at_whatever_door_they_came_in_by(
    tool: str, calls: str, message: str
) -> None:
    turns = [ChatTurn("user", "a"), ChatTurn("assistant", "b", tool_calls=calls)]
    with pytest.raises(InvalidRequestError) as caught:
        byte_level().encode_chat(turns, [tool] if tool else [])
    assert message in str(caught.value)
    assert caught.value.param == ("tools" if tool else "messages")


def test_loads_from_a_folder_and_encodes_in_threads(tmp_path: Path) -> None:
    processor = byte_level()
    processor._tokenizer.save_pretrained(tmp_path)
    loaded = TextProcessor.load(tmp_path)
    assert loaded.vocab_size == processor.vocab_size
    turns = [ChatTurn("user", TEXTS[2])]
    assert loaded.encode_chat(turns) == processor.encode_chat(turns)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(loaded.encode, TEXTS * 25)) == [processor.encode(text) for text in TEXTS * 25]
    with pytest.raises(ModelError, match="no such file"):
        TextProcessor.load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot load"):
        TextProcessor.load(tmp_path / "empty")


def match_whole(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Reference: character by character, the first stop string that is complete; the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


few = st.text(alphabet="ab\n", max_size=12)


@given(few, st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=3), sizes)
@example("aab", ["ab", "aac"], [1])
@example("abab\n", ["abab\nb", "b\n"], [2])
def test_stop_strings_are_found_however_the_text_is_cut(
    text: str, stops: list[str], sizes: list[int]
) -> None:
    matcher = StopMatcher(stops)
    emitted, matched, begin, turn = "", None, 0, 0
    while begin < len(text):
        size = sizes[turn % len(sizes)]
        shown, matched = matcher.feed(text[begin : begin + size])
        emitted, begin, turn = emitted + shown, begin + size, turn + 1
        rest = match_whole(text[:begin], stops)[0]
        if matched is None:
            # Nothing is held but what could still become a stop string.
            held = rest[len(emitted) :]
            assert not held or any(stop.startswith(held) for stop in stops)
    assert (emitted + matcher.flush(), matched) == match_whole(text, stops)


def test_a_text_that_cannot_fit_is_refused_after_a_part_of_it() -> None:
    """And one that fits gives the same ids, however long its tokens are."""
    processor = byte_level()
    short = "a " * 200_000
    whole = processor.encode(short)
    assert processor.encode(short, len(whole)) == whole
    with pytest.raises(TooManyTokensError):
        processor.encode("a " * 2_000_000, 8192)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for x in %}", "line 1: Expected an expression"),
        ("a\n{% if %}", "line 2: "),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "nested too deeply"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 2 s",
        ),
        ("{{ 'a' * 10 ** 10 }}", "or 1024 MiB"),
        ("{{ 9 ** (9 ** 9) }}", "takes more than"),
        ("{% for a in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "writes more than 1048576 characters"),
        (
            "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}",
            "",
        ),
        ("{{ raise_exception('never') }}", ""),
    ],
)
def test_chat_templates_are_tried_out(template: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"it: .*{message}") if message else nullcontext():
        try_out([template], "it")


def test_a_text_that_the_tokenizer_gives_up_on_is_refused() -> None:
    """An expression that goes back and forth ends with a panic of Rust, which is no Exception."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    without_unknown = Tokenizer(models.WordLevel({"a": 0}, unk_token="?"))
    for one, said in ((tokenizer, "a" * 40 + "!"), (without_unknown, "b")):
        text = TextProcessor(PreTrainedTokenizerFast(tokenizer_object=one))
        with pytest.raises(InvalidRequestError, match="gives up on this text"):
            text.encode(said)
