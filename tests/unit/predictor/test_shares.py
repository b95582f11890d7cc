"""What is remembered of lengths is shared out among owners: nobody pushes out what the others taught."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from predictor.evaluation.champion import Champion
from predictor.training.fit import fit
from tests.unit.predictor.synthetic import lines
from tidepipe_common.lengths.prompt import PromptFeatures, prompt_features
from tidepipe_common.lengths.recent import MAX_KEYS, RecentLengths
from tidepipe_common.lengths.request import LEVELS, Observation, RequestFeatures
from tidepipe_common.lengths.shares import SharedMemory, fair_newest

P90 = LEVELS.index(0.9)
OURS, THEIRS = 1, 2


@given(st.lists(st.integers(0, 4), max_size=80), st.integers(1, 40))
def test_each_owner_has_its_newest_and_half_at_most_while_others_fill_the_rest(
    owners: list[int], size: int
) -> None:
    kept = fair_newest(np.array(owners, dtype=np.int64), size).tolist()
    assert kept == sorted(set(kept)) and len(kept) == min(size, len(owners))
    had, has, share = Counter(owners), Counter(owners[place] for place in kept), max(1, size // 2)
    for owner in had:
        own = [place for place, one in enumerate(owners) if one == owner]
        assert [place for place in kept if owners[place] == owner] == own[len(own) - has[owner] :]
        if has[owner] > share:
            assert all(has[other] >= min(had[other], share) for other in had if other != owner)
    memory = SharedMemory[int](size)
    memory.extend(range(len(owners)), owners)
    assert list(memory) == kept


def answers(count: int, seed: int) -> list[Observation]:
    """Ours."""
    return [
        Observation(
            RequestFeatures(prompt=replace(prompt_features(str(one["prompt"])), owner=OURS)),
            int(str(one["output_tokens"])),
            False,
        )
        for one in lines(count, seed)
    ]


def test_a_flood_of_short_answers_changes_no_prediction_of_ours() -> None:
    """Another caller has ten thousand answers of one token to prompts like ours, and nothing of ours ends."""
    known = answers(500, seed=1)
    asked = [one.features for one in known[:50]]
    flood = [Observation(replace(one, prompt=replace(one.prompt, owner=THEIRS)), 1, False) for one in asked]
    for trained in (False, True):
        champion = Champion(window=512)
        if trained:
            champion.replace(fit(known, "hazard/1").model)
        champion.observe(known)
        before = [one.tokens[P90] for one in champion.predict(asked)]
        for _ in range(200):
            champion.observe(flood)
        after = [one.tokens[P90] for one in champion.predict(asked)]
        assert 0.8 < np.median(np.array(after) / np.array(before)) < 1.25
        theirs = [one.tokens[P90] for one in champion.predict([one.features for one in flood])]
        assert np.median(theirs) < 0.5 * np.median(before), "it learns of them, too"


def test_recent_lengths_are_their_owners_own() -> None:
    """Another caller uses our system message, and more names than there is room for."""
    ours = PromptFeatures(template=7, owner=OURS)
    recent = RecentLengths()
    for _ in range(8):
        recent.note(Observation(RequestFeatures(prompt=ours), 300, False))
    for name in range(2 * MAX_KEYS):
        theirs = PromptFeatures(template=7, client=name + 1, owner=THEIRS)
        recent.note(Observation(RequestFeatures(prompt=theirs), 1, False))
    assert recent.numbers(RequestFeatures(prompt=ours))[1] == round(float(np.log1p(300)), 3)
    assert len(recent.entries()) == MAX_KEYS
