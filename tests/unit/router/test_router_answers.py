"""Answers: whatever arrives twice, late or not at all, and however often clients come back."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.instances.sequence import MAX_FRUITLESS, NO_PREFIX, Progress, PromptPrefix
from router.requests.meter import Unmeasured
from router.requests.output import AnswerText
from router.requests.running_answer import Cursor, RunningAnswer
from tests.fakes.text import ByteText
from tidepipe_common.errors import InvalidRequestError, TidePipeError
from tidepipe_common.types.results import SequenceEnd, SequenceUpdate
from tidepipe_common.types.sampling import FinishReason, PositionLogprobs, SamplingParams, TokenLogprob

# Characters of one to four bytes, so that tokens (bytes) split them.
OUTPUT = "näïve — 你好 🌊🌊 stop sign. "


@dataclass
class Owner:
    errors: list[TidePipeError] = field(default_factory=list)

    def answer_changed(self) -> None:
        pass

    def fail(self, error: TidePipeError) -> None:
        self.errors.append(error)


def make_answer(sampling: SamplingParams, owner: Owner | None = None) -> RunningAnswer:
    text = AnswerText(ByteText().new_detokenizer((), True), sampling.stop, min_tokens=sampling.min_tokens)
    owner = owner or Owner()
    return RunningAnswer(
        "r/0",
        0,
        array("I", [1, 2]),
        sampling,
        text,
        owner.answer_changed,
        owner.fail,
        lambda: 0.0,
        0.0,
        Unmeasured(),
    )


def news(tokens: list[int], begin: int, end: int, finish: FinishReason | None = None) -> SequenceUpdate:
    logprobs = [PositionLogprobs(TokenLogprob(token, -1.0)) for token in tokens[begin:end]]
    ended = None if finish is None else SequenceEnd("", finish)
    return SequenceUpdate("", begin, tokens[begin:end], logprobs, ended)


class Client:
    """Reads pieces; each must begin where the last one ended."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.finish: FinishReason | None = None
        self.cursor = Cursor()

    def reconnect(self) -> None:
        self.cursor = Cursor(len(self.tokens), len(self.text), done=False)

    def read(self, answer: RunningAnswer) -> None:
        delta = answer.read(self.cursor)
        if delta is None:
            return
        assert (delta.token_offset, delta.character_offset) == (len(self.tokens), len(self.text))
        assert [entry.chosen.token_id for entry in delta.piece.logprobs] == list(delta.piece.token_ids)
        self.tokens += delta.piece.token_ids
        self.text += delta.piece.text
        self.finish = delta.piece.finish_reason or self.finish


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("news"), st.integers(-8, 3), st.integers(0, 12)),
        st.tuples(st.just("read"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("reconnect"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("moved"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([(), ("stop",), (" stop s", "p s"), ("好 🌊",), ("absent",)]))
def test_any_interleaving_gives_exactly_the_output(
    steps: list[tuple[str, int, int]], stops: tuple[str, ...]
) -> None:
    tokens = list(OUTPUT.encode())
    answer = make_answer(SamplingParams(max_tokens=10_000, stop=stops))
    clients = [Client() for _ in range(3)]
    for action, first, second in steps:
        have = len(answer.output)
        if action == "news":
            begin = max(0, have + first)
            progress = answer.apply(news(tokens, begin, begin + second))
            assert (progress is Progress.GAP) == (begin > have and not answer.finished)
        elif action == "read":
            clients[first].read(answer)
        elif action == "reconnect":
            clients[first].reconnect()
        else:
            answer.moved()
    answer.apply(news(tokens, len(answer.output), len(tokens), FinishReason.STOP))
    cuts = [(OUTPUT.index(stop) + len(stop), stop) for stop in stops if stop in OUTPUT]
    text, end = OUTPUT, len(tokens)
    if cuts:
        at, stop = min(cuts)
        text, end = OUTPUT[: at - len(stop)], len(OUTPUT[:at].encode())
    for client in clients:
        client.read(answer)
        assert (client.text, client.tokens, client.finish) == (text, tokens[:end], FinishReason.STOP)
        client.reconnect()
        client.read(answer)
        assert client.tokens == tokens[:end]


def test_text_that_is_held_back_comes_out_at_the_end() -> None:
    tokens = [*b"abcsto", 0xC3]
    answer = make_answer(SamplingParams(max_tokens=100, stop=("stop",)))
    client = Client()
    answer.apply(news(tokens, 0, 7))
    client.read(answer)
    assert (client.text, client.tokens) == ("abc", tokens), "tokens flow on while text waits"
    answer.apply(news(tokens, 7, 7, FinishReason.LENGTH))
    client.read(answer)
    assert (client.text, client.finish) == ("abcsto\N{REPLACEMENT CHARACTER}", FinishReason.LENGTH)


def test_what_was_found_is_what_its_first_token_did_without() -> None:
    """Not what is found where it goes on; nor what an instance found that never answered."""
    answer = make_answer(SamplingParams(max_tokens=9))
    answer.apply(replace(news([], 0, 0), cached_tokens=64))
    answer.moved()
    for begin, cached in ((0, 32), (1, 32)):
        answer.apply(replace(news([97, 98], begin, begin + 1), cached_tokens=cached))
    answer.moved()
    answer.apply(replace(news([97, 98, 99], 2, 3), cached_tokens=48))
    assert answer.usage.cached_tokens == 32
    answer = make_answer(SamplingParams(max_tokens=9))
    for begin, cached in ((0, 32), (1, 0), (2, 96)):  # handed over with its blocks, which is no loss
        answer.apply(replace(news([97, 98, 99], begin, begin + 1), cached_tokens=cached))
        assert answer.usage.cached_tokens == 32


def test_an_ended_answer_keeps_no_names_of_its_beginning() -> None:
    """It is remembered for long, by a count of bytes that does not have them."""
    answer = make_answer(SamplingParams(max_tokens=9))
    answer.prefix = PromptPrefix(b"root", (1, 2))
    answer.apply(news([97], 0, 1, FinishReason.LENGTH))
    assert answer.finished
    assert answer.prefix == NO_PREFIX


def test_what_the_stage_refuses_is_the_requests_fault_and_other_errors_are_not() -> None:
    for fault, kind in (("response_format", InvalidRequestError), ("", InvalidRequestError), (None, None)):
        owner = Owner()
        answer = make_answer(SamplingParams(), owner)
        end = SequenceEnd("", FinishReason.ERROR, error="it cannot be", fault=fault)
        answer.apply(SequenceUpdate("", 0, [], end=end))
        if kind is None:
            assert (answer.finish_reason, owner.errors) == (FinishReason.ERROR, [])
        else:
            (error,) = owner.errors
            assert isinstance(error, kind) and (str(error), error.param) == ("it cannot be", fault or None)


def test_who_has_more_than_the_answer_is_told_so_once_it_is_complete() -> None:
    tokens = list(b"abc")
    for cursor in (Cursor(4, 0), Cursor(0, 4), Cursor(2**32 - 1, 2**32 - 1)):
        for reason in (FinishReason.LENGTH, FinishReason.CANCELLED):
            answer = make_answer(SamplingParams(max_tokens=3))
            ahead = Cursor(cursor.tokens, cursor.characters)
            answer.apply(news(tokens, 0, 2))
            answer.read(ahead)  # it may grow as long yet
            answer.apply(news(tokens, 2, 3, reason))
            if reason.whole:
                with pytest.raises(InvalidRequestError, match="resume says that"):
                    answer.read(ahead)
            else:
                assert (end := answer.read(ahead)) and end.piece.finish_reason is reason


def test_stop_strings_count_only_behind_min_tokens() -> None:
    tokens = list(b"stop and stop")
    answer = make_answer(SamplingParams(max_tokens=100, stop=("stop",), min_tokens=4))
    assert answer.apply(news(tokens, 0, 13)) is Progress.ENDED_HERE
    client = Client()
    client.read(answer)
    assert (client.text, client.finish) == ("stop and ", FinishReason.STOP)


def test_moves_end_when_nothing_is_left_to_do_or_to_hope() -> None:
    complete = make_answer(SamplingParams(max_tokens=3))
    complete.apply(news([65, 66, 67], 0, 3))
    assert not complete.moved() and complete.finish_reason is FinishReason.LENGTH
    owner = Owner()
    deadly = make_answer(SamplingParams(max_tokens=30), owner)
    for _ in range(MAX_FRUITLESS):
        assert deadly.moved()
    deadly.moved()
    assert len(owner.errors) == 1
