"""What is read off prompts is what Hugging Face computes, however steps cut them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stage_worker.executors.protocol import Executor
from stage_worker.sampling import prompt_reader
from stage_worker.sampling.prompt_reader import PromptReader
from stage_worker.sampling.signal_reader import SignalReader, projection
from tests.tiny_models import make_tiny_model, random_prompts
from tests.torch_pipeline import make_pipeline, run_whole_step
from tidepipe_common.types.length_signal import NUMBERS, LengthSignal, signal_numbers
from tidepipe_common.types.plan import Phase, PlanRow, SequenceStart, StepPlan
from tidepipe_common.types.prompt_reading import PromptLog, PromptPiece, positions
from tidepipe_common.types.sampling import Pooling, SamplingParams

BLOCK = 16
PROMPTS = random_prompts([1, 2, 17, 40])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def executors(model: Path) -> list[Executor]:
    return make_pipeline(model, 2)


def read(
    executors: list[Executor],
    wishes: list[SamplingParams],
    chunk: int,
    signals: list[tuple[int, LengthSignal]] | None = None,
) -> list[list[PromptPiece]]:
    """Pieces of each prompt, read side by side in steps of `chunk` tokens of each.

    signals: of all but the second prompt are wanted, and noted with their steps.
    """
    found: list[list[PromptPiece]] = [[] for _ in PROMPTS]
    blocks = iter(range(executors[0].kv_blocks))
    given = [0] * len(PROMPTS)
    step_id = 0
    while any(done < len(prompt) for done, prompt in zip(given, PROMPTS, strict=True)):
        step_id += 1
        rows, starts = [], []
        for index, prompt in enumerate(PROMPTS):
            first = given[index]
            part = tuple(prompt[first : first + chunk])
            if not part:
                continue
            if not first:
                wanted = signals is not None and index != 1
                starts.append(
                    SequenceStart(index, wishes[index], len(prompt), tuple(prompt), wants_signal=wanted)
                )
            new = -(-(first + len(part)) // BLOCK) - -(-first // BLOCK)
            given[index] += len(part)
            ends = given[index] == len(prompt)
            rows.append(PlanRow(index, first, len(part), part, tuple(next(blocks) for _ in range(new)), ends))
        sampled = run_whole_step(executors, StepPlan(step_id, Phase.PREFILL, tuple(rows), tuple(starts)))
        assert not sampled.errors
        if signals is not None:
            signals += [(step_id, one) for one in sampled.signals]
        for piece in sampled.prompts:
            found[piece.key].append(piece)
    releases = tuple(range(len(PROMPTS)))
    run_whole_step(executors, StepPlan(step_id + 1, Phase.IDLE, (), (), releases))
    return found


@torch.inference_mode()
def of_hugging_face(model: Path) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities [positions, vocabulary] and final states of each prompt."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    outputs = [network(torch.tensor([prompt]), output_hidden_states=True) for prompt in PROMPTS]
    return [(one.logits[0].log_softmax(-1), one.hidden_states[-1][0]) for one in outputs]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_log_probabilities_are_hugging_faces(
    model: Path, executors: list[Executor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_reader, "CHUNK_ELEMENTS", {"cpu": 5 * 300})
    wishes = [SamplingParams(temperature=0, prompt_logprobs=top) for top in (3, 0, 20, 5)]
    for index, (pieces, (expected, _)) in enumerate(
        zip(read(executors, wishes, chunk), of_hugging_face(model), strict=True)
    ):
        prompt, log = PROMPTS[index], PromptLog()
        assert sum(piece.count for piece in pieces) == len(prompt)
        for piece in pieces:
            assert piece.prompt_logprobs_read is None or log.merge(piece.prompt_logprobs_read)
        assert len(log) == len(prompt) - 1
        known = log.read(0, len(log))
        for place, one in enumerate(positions(known) if known else [], start=1):
            row = expected[place - 1]
            chosen = one.logprobs.chosen
            assert chosen.token_id == prompt[place]
            assert chosen.logprob == pytest.approx(float(row[prompt[place]]), abs=1e-4)
            assert one.rank == 1 + int((row > row[prompt[place]]).sum())
            best = [token.logprob for token in one.logprobs.top]
            assert best == pytest.approx(row.topk(len(best)).values.tolist(), abs=1e-4)
            assert len(best) == wishes[index].prompt_logprobs


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("how", list(Pooling))
def test_vectors_are_pooled_states(model: Path, executors: list[Executor], chunk: int, how: Pooling) -> None:
    wishes = [SamplingParams(temperature=0, max_tokens=0, pooling=how)] * len(PROMPTS)
    for pieces, (_, states) in zip(read(executors, wishes, chunk), of_hugging_face(model), strict=True):
        assert [bool(piece.vector) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        vector = np.frombuffer(pieces[-1].vector, "<f4")
        expected = {Pooling.MEAN: states.mean(0), Pooling.LAST: states[-1], Pooling.CLS: states[0]}[how]
        assert np.abs(vector - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize("chunk", [7, 1000])
def test_length_signals_come_with_first_tokens(model: Path, executors: list[Executor], chunk: int) -> None:
    """Of the state behind the whole prompt, once, in the step that samples its first token."""
    signals: list[tuple[int, LengthSignal]] = []
    read(executors, [SamplingParams(temperature=0)] * len(PROMPTS), chunk, signals)
    assert [one.key for _, one in signals] == [0, 2, 3]
    for step, one in signals:
        assert step == -(-len(PROMPTS[one.key]) // chunk)
        logprobs, states = (of_all[-1] for of_all in of_hugging_face(model)[one.key])
        unit = states / states.square().mean().sqrt()
        expected = [
            *(unit @ projection(len(states))).tolist(),
            float(-(logprobs.exp() * logprobs).sum()),
            float(logprobs.max()),
        ]
        assert len(expected) == NUMBERS
        assert signal_numbers(one.values) == pytest.approx(expected, abs=5e-3)


def test_who_is_computed_again_or_is_not_finite_has_no_signal() -> None:
    reader = SignalReader()
    for key in range(3):
        reader.start(SequenceStart(key, SamplingParams(), 5, wants_signal=True))
    # The second one comes back with output; the first one's state is no number.
    assert reader.due([0, 1, 2], [5, 8, 5]) == [0, 2]
    states, logits = torch.ones(2, 16), torch.zeros(2, 10)
    states[0, 3] = torch.nan
    assert [one.key for one in reader.read([0, 2], states, logits)] == [2]
    assert reader.due([0, 2], [5, 5]) == []


def test_they_are_off_by_what_pytorchs_are_off() -> None:
    """To the last bit: over a large vocabulary float32 leans to one side, and texts have many tokens."""
    logits = torch.randn(20, 49_152, generator=torch.Generator().manual_seed(0)) * 3
    prompt = tuple(range(20))
    wish = SamplingParams(temperature=0, prompt_logprobs=1)
    reader = PromptReader(logits.shape[1])
    reader.start(SequenceStart(0, wish, len(prompt), prompt))
    rows = (PlanRow(0, 0, len(prompt), prompt, (0, 1), True),)
    model: Any = SimpleNamespace(logits=lambda rows: rows)
    batch: Any = SimpleNamespace(offsets=torch.tensor([0]))
    (piece,), _ = reader.read(StepPlan(1, Phase.PREFILL, rows), batch, logits, model)
    read = piece.prompt_logprobs_read
    assert read is not None
    expected = logits.log_softmax(-1)
    for place, one in enumerate(positions(read)):
        assert one.logprobs.chosen.logprob == float(expected[place, place + 1])
