"""`python -m launcher.reference`: writes docs/reference/configuration.md, from the settings as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from controller.scheduler.policies.catalog import DEFAULTS, default_knobs
from tidepipe_common.settings.cluster import ClusterConfig, default_text
from tidepipe_common.settings.command_line import variable_of
from tidepipe_common.settings.controller import ControllerSettings
from tidepipe_common.settings.defaults import LIVE_POLICIES
from tidepipe_common.settings.definition import Setting, settings_of
from tidepipe_common.settings.predictor import PredictorSettings
from tidepipe_common.settings.router import RouterSettings
from tidepipe_common.settings.service import ServiceSettings
from tidepipe_common.settings.stage_worker import StageWorkerSettings
from tidepipe_common.settings.upstream import UpstreamSettings

FILE = Path(__file__).parents[1] / "docs" / "reference" / "configuration.md"
SERVICES: tuple[type[ServiceSettings], ...] = (
    RouterSettings,
    ControllerSettings,
    UpstreamSettings,
    StageWorkerSettings,
    PredictorSettings,
)
HEAD = """# Configuration

Made by `python -m launcher.reference` from the settings' own definitions (`tidepipe_common/settings/`): edit
those, and make it anew.

A value that is wrong is refused before anything starts, in the same words wherever it stood, and the process
ends with code 2.
"""
CLUSTER = """
## A local cluster

Flags of `tidepipe up` and of every other command that can start a cluster, and keys of the TOML file that
`--config FILE` names. Flags win over the file. Processes get what they share with the cluster as flags, so
that it wins over their variables.
"""
SERVICE = """
## {service}

Flags of `python -m {service}`. {doc} A flag wins over its environment variable; an empty variable is none.
"""
KNOBS = """
## Settings of the policies

What `--policy-settings NAME=VALUE,..` may name, with the defaults of `--policy`; in brackets those on CPUs
where they differ. 0 of a limit: none; of `occupancy`: admission by forecast.
"""


def reference() -> str:
    """The page."""
    parts = [HEAD, CLUSTER, *_table(("Flag", "TOML"), ClusterConfig, lambda one: f"`{one.name}`")]
    for model in SERVICES:
        doc = " ".join((model.__doc__ or "").split())
        parts.append(SERVICE.format(service=model.service, doc=doc))
        parts += _table(("Flag", "Variable"), model, partial(_variable, model))
    return "".join([*parts, KNOBS, *_knobs()])


def _variable(model: type[ServiceSettings], one: Setting) -> str:
    return f"`{variable_of(model, one)}`"


def _table(names: tuple[str, str], model: type[BaseModel], second: Callable[[Setting], str]) -> Iterable[str]:
    yield "\n" + _row(*names, "Value", "Default", "What it is") + _row(*["---"] * 5)
    for one in settings_of(model).values():
        default = default_text(one.name) if model is ClusterConfig else one.default_text
        yield _row(f"`{one.flag}`", second(one), _value(one), _default(one, default), one.help)


def _value(one: Setting) -> str:
    if one.numbers is not None:
        return f"{'whole number' if one.numbers.whole else 'number'} in {one.numbers}"
    if one.kind is bool:
        return "on or off"
    return ", ".join(f"`{choice}`" for choice in one.choices) or one.metavar


def _default(one: Setting, text: str) -> str:
    if one.required:
        return "required"
    if one.kind is bool:
        return "off"
    return text or "none"


def _knobs() -> Iterable[str]:
    names = list(dict.fromkeys(name for policy in LIVE_POLICIES for name in DEFAULTS[policy]))
    yield "\n" + _row("Setting", *LIVE_POLICIES) + _row(*["---"] * (1 + len(LIVE_POLICIES)))
    for name in names:
        yield _row(f"`{name}`", *(_knob(policy, name) for policy in LIVE_POLICIES))


def _knob(policy: str, name: str) -> str:
    if name not in DEFAULTS[policy]:
        return ""
    default, here = DEFAULTS[policy][name], default_knobs(policy, "cpu")[name]
    return f"{default} ({here})" if here != default else str(default)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def main() -> int:
    """Entry point; the exit code."""
    FILE.write_text(reference())
    print(FILE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
