"""docs/reference/configuration.md is what `python -m launcher.reference` writes."""

from __future__ import annotations

from launcher.reference import FILE, SERVICES, reference
from tidepipe_common.settings.cluster import ClusterConfig
from tidepipe_common.settings.command_line import variable_of
from tidepipe_common.settings.definition import settings_of


def test_the_reference_is_fresh() -> None:
    assert FILE.read_text() == reference(), "run python -m launcher.reference"


def test_every_setting_is_in_it() -> None:
    text = reference()
    for name in ClusterConfig.model_fields:
        assert f"| `{name}` |" in text
    for model in SERVICES:
        for setting in settings_of(model).values():
            assert f"| `{setting.flag}` | `{variable_of(model, setting)}` |" in text
