"""What users set: `TIDEPIPE_VLLM_*` in the environment, or "tidepipe" in vLLM's `--additional-config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from controller.scheduler.policies.catalog import Knobs, make_setup, parse_knobs
from tidepipe_common.errors import ConfigError
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.settings.defaults import LIVE_POLICIES, TPOT_S, TTFT_S

PREFIX = "TIDEPIPE_VLLM_"
KEY = "tidepipe"


@dataclass(frozen=True, slots=True)
class Settings:
    """policy, settings: as `--policy` and `--policy-settings` of a controller; `off`: vLLM's own scheduler.

    ttft_ms, tpot_ms: latency targets, which the step size of `auto` keeps to while they can be kept.
    hardware: the device whose data sheet prices begin with; empty: by its name.
    timeline: a file of JSON lines that says what each step was; empty: none.
    metrics_port, metrics_host: where Prometheus can read; port 0: nowhere.
    """

    policy: str = "auto"
    settings: str = ""
    ttft_ms: float = TTFT_S * 1000
    tpot_ms: float = TPOT_S * 1000
    hardware: str = ""
    timeline: str = ""
    metrics_port: int = 0
    metrics_host: str = "127.0.0.1"

    @property
    def knobs(self) -> Knobs:
        """Of the policy, those that were chosen."""
        return parse_knobs(self.settings, self.policy)


def read_settings(environment: Mapping[str, str], additional: object) -> Settings:
    """What is set; the environment goes before vLLM's JSON. ConfigError: one sentence."""
    known = [one.name for one in fields(Settings)]
    given: dict[str, tuple[str, Any]] = {}
    own = additional.get(KEY, {}) if isinstance(additional, Mapping) else {}
    if not isinstance(own, Mapping):
        raise ConfigError(f'--additional-config must have an object behind "{KEY}", got {own!r}')
    for name, value in own.items():
        if name not in known:
            raise ConfigError(
                f'--additional-config: "{KEY}" has no setting {name!r}; it has: {", ".join(known)}'
            )
        given[name] = f'--additional-config: "{KEY}"."{name}"', value
    for variable, text in environment.items():
        if variable.startswith(PREFIX):
            name = variable.removeprefix(PREFIX).lower()
            if name not in known:
                names = ", ".join(PREFIX + one.upper() for one in known)
                raise ConfigError(f"there is no setting {variable}; there are: {names}")
            given[name] = variable, text
    return _checked({name: _value(name, where, value) for name, (where, value) in given.items()}, given)


def _value(name: str, where: str, value: Any) -> str | float | int:
    if name == "metrics_port":
        text = str(value)
        if isinstance(value, bool) or not (text.isascii() and text.isdigit() and int(text[:6]) < 65536):
            raise ConfigError(f"{where} must be a port, 1 to 65535 (0: none), got {value!r}")
        return int(text)
    if not name.endswith("_ms"):
        if not isinstance(value, str):
            raise ConfigError(f"{where} must be a text, got {value!r}")
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if isinstance(value, bool) or not 0.0 < number < 1e9:
        raise ConfigError(f"{where} must be a number of milliseconds above 0, got {value!r}")
    return number


def _checked(values: Mapping[str, Any], given: Mapping[str, tuple[str, Any]]) -> Settings:
    def where(name: str) -> str:
        return given[name][0] if name in given else name

    settings = Settings(**values)
    if settings.policy == "off":
        return settings
    if settings.policy not in LIVE_POLICIES:
        known = ", ".join([*LIVE_POLICIES, "off"])
        raise ConfigError(f"{where('policy')}: unknown policy {settings.policy!r}; known: {known}")
    try:
        knobs = {knob: value for knob, value in settings.knobs.items() if knob != "switching"}
        make_setup(settings.policy, knobs)
    except ConfigError as error:
        raise ConfigError(f"{where('settings')}: {error}") from error
    try:
        hardware(settings.hardware or "cpu")
    except ConfigError as error:
        raise ConfigError(f"{where('hardware')}: {error}") from error
    if settings.timeline and not Path(settings.timeline).absolute().parent.is_dir():
        raise ConfigError(f"{where('timeline')}: there is no folder for {settings.timeline}")
    return settings
