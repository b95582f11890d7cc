"""The setting of adapters: `--lora NAME=FOLDER`, several times or with commas."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tidepipe_common.model_names import check_names

MAX_ADAPTERS = 32
"""Of one base: each is held by its stages all the time, and told by its instances to their routers."""


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """An adapter by the name that requests call it, and PEFT's folder with it."""

    name: str
    folder: Path


def parse_adapters(text: str) -> tuple[AdapterPlace, ...]:
    """`NAME=FOLDER`, or several of them with commas; ValueError says what is wrong."""
    places = []
    for part in text.split(","):
        name, equals, folder = part.strip().partition("=")
        if not equals or not folder:
            raise ValueError("must be NAME=FOLDER, or several of these with commas")
        places.append(AdapterPlace(name, Path(folder).expanduser()))
    if len(places) > MAX_ADAPTERS:
        raise ValueError(f"must be {MAX_ADAPTERS} adapters at most, got {len(places)}")
    for place in places:
        check_names([place.name])
    if twice := {one.name for one in places if [two.name for two in places].count(one.name) > 1}:
        raise ValueError(f"must not name {min(twice)[:80]} twice")
    return tuple(places)
