"""Prompts that no context holds, whichever way they are tokenized."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import pytest

from router.instances.sequence import PrefixKeys
from router.requests.admission import INLINE_CHARACTERS, Admission
from router.requests.text_port import TooManyTokensError
from tests.fakes.text import ByteText
from tidepipe_common.errors import ContextLengthError
from tidepipe_common.types.request import GenerationRequest


class Impatient(ByteText):
    """Sees at once that a text has more tokens than fit."""

    def encode(self, text: str, most: int | None = None) -> list[int]:
        assert most is not None
        raise TooManyTokensError(most)


@pytest.mark.parametrize("characters", [INLINE_CHARACTERS, INLINE_CHARACTERS + 1])
async def test_a_text_with_too_many_tokens_does_not_fit(characters: int) -> None:
    text: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    text.set_result(Impatient())
    facts = SimpleNamespace(model="m", context_length=100, vocab_size=256, eos_token_ids=(0,))

    async def wait(patience_s: float) -> object:
        return facts

    with ThreadPoolExecutor(1) as executor:
        served = cast(Any, SimpleNamespace(wait=wait))
        admission = Admission("m", text, served, executor, 1.0, PrefixKeys(lambda: 16))
        with pytest.raises(ContextLengthError, match="more than 100 tokens"):
            await admission.admit(GenerationRequest("r", "a" * characters), cast(Any, None))
