"""Prompts whose answers' lengths are known by law."""

from __future__ import annotations

import numpy as np

TOPICS = ("rivers", "mountains", "cooking", "history", "music", "chess", "weather", "trains")


def lines(count: int, seed: int, scale: float = 1.0) -> list[dict[str, object]]:
    """Log-normal lengths: stories about 300 tokens at the median, labels about 6."""
    chance = np.random.default_rng(seed)
    found: list[dict[str, object]] = []
    for _ in range(count):
        topic = TOPICS[chance.integers(len(TOPICS))]
        long = bool(chance.integers(2))
        prompt = f"Write a long story about {topic}." if long else f"Classify {topic}: true or false?"
        median, spread = (300.0, 0.4) if long else (6.0, 0.3)
        length = int(np.ceil(scale * median * np.exp(spread * chance.normal())))
        found.append({"prompt": prompt, "output_tokens": length})
    return found
