"""Prompts on their way in: what no context holds, and by what beginnings are found."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.instances.sequence import PrefixKeys, PromptPrefix
from router.requests.admission import INLINE_CHARACTERS, Admission
from router.requests.text_port import TooManyTokensError
from tests.fakes.text import ByteText
from tidepipe_common.errors import ContextLengthError
from tidepipe_common.prefix import block_keys, root_key, told_key
from tidepipe_common.types.request import GenerationRequest


class Impatient(ByteText):
    """Sees at once that a text has more tokens than fit."""

    def encode(self, text: str, most: int | None = None, *, special: bool = True) -> list[int]:
        assert most is not None
        raise TooManyTokensError(most)


def only(text: asyncio.Future[Any], facts: object, prefixes: PrefixKeys) -> Any:
    """The models of a router that has one."""

    async def wait(patience_s: float) -> object:
        return facts

    async def wanted(name: str | None) -> object:
        return SimpleNamespace(text=text, wait=wait, prefixes=prefixes, adapter=lambda name: "")

    return SimpleNamespace(wanted=wanted)


@pytest.mark.parametrize("characters", [INLINE_CHARACTERS, INLINE_CHARACTERS + 1])
async def test_a_text_with_too_many_tokens_does_not_fit(characters: int) -> None:
    text: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    text.set_result(Impatient())
    facts = SimpleNamespace(model="m", context_length=100, vocab_size=256, eos_token_ids=(0,))

    with ThreadPoolExecutor(1) as executor:
        admission = Admission(only(text, facts, PrefixKeys(lambda: 16)), executor, 1.0)
        with pytest.raises(ContextLengthError, match="more than 100 tokens"):
            await admission.admit(GenerationRequest("r", "a" * characters), cast(Any, SimpleNamespace()))


@pytest.mark.parametrize("characters", [INLINE_CHARACTERS - 1, INLINE_CHARACTERS + 1])
@pytest.mark.parametrize("as_ids", [False, True])
async def test_a_beginning_is_named_by_its_tokens_and_whose_it_is(characters: int, as_ids: bool) -> None:
    """As a controller names its blocks, wherever it is hashed; another tenant's is another unless all share,
    and nothing is hashed where no instance reuses blocks."""
    text: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    text.set_result(ByteText())
    facts = SimpleNamespace(model="m", context_length=10_000, vocab_size=256, eos_token_ids=(0,))

    async def prefix(owner: str, block_size: int = 16, *, share: bool = False) -> PromptPrefix:
        prefixes = PrefixKeys(lambda: block_size, share=share)
        entry = cast(Any, SimpleNamespace(new_answer=lambda *args, **told: told["prefix"]))
        prompt = tuple(b"a" * characters) if as_ids else "a" * characters
        request = GenerationRequest("r", prompt, owner=owner)
        with ThreadPoolExecutor(1) as executor:
            (found,) = await Admission(only(text, facts, prefixes), executor, 1.0).admit(request, entry)
        return cast(PromptPrefix, found)

    keys = block_keys(root_key("one"), list(b"a" * characters), 16)
    assert await prefix("one") == PromptPrefix(root_key("one"), tuple(map(told_key, keys[7::8])))
    assert not {*(await prefix("one")).keys} & {*(await prefix("two")).keys}
    assert await prefix("one", share=True) == await prefix("two", share=True)
    assert await prefix("one", 0) == PromptPrefix(root_key("one"))


async def test_who_has_left_has_no_more_prompts_tokenized() -> None:
    """The prompt that is being read is read to its end; the others are not begun."""
    begun, go_on, read = threading.Event(), threading.Event(), []

    class Slow(ByteText):
        def encode(self, text: str, most: int | None = None, *, special: bool = True) -> list[int]:
            read.append(text)
            begun.set()
            go_on.wait(10)
            return super().encode(text, most, special=special)

    text: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    text.set_result(Slow())
    facts = SimpleNamespace(model="m", context_length=10_000, vocab_size=256, eos_token_ids=(0,))
    prompts = tuple(letter * INLINE_CHARACTERS for letter in "abc")
    with ThreadPoolExecutor(1) as executor:
        admission = Admission(only(text, facts, PrefixKeys(lambda: 16)), executor, 1.0)
        request = GenerationRequest("r", prompts[0], more_prompts=prompts[1:])
        admitting = asyncio.ensure_future(admission.admit(request, cast(Any, SimpleNamespace())))
        await asyncio.to_thread(begun.wait, 10)
        admitting.cancel()
        await asyncio.gather(admitting, return_exceptions=True)
        go_on.set()
    assert read == [prompts[0]]
