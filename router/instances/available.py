"""The models for which there is an instance now."""

from __future__ import annotations

from router.instances.model_facts import ModelFacts
from router.instances.registry import InstanceRegistry
from router.instances.served_model import ServedModel


class AvailableModels:
    """What ListModels, /v1/models and readiness look at."""

    def __init__(self, model_name: str, served: ServedModel, registry: InstanceRegistry) -> None:
        """model_name: the name that clients use."""
        self.model_name = model_name
        self._served = served
        self._registry = registry

    @property
    def ready(self) -> bool:
        """True if at least one instance says that all its stages answer."""
        return self._served.facts is not None and any(link.serving for link in self._registry.connected)

    def list(self) -> list[tuple[str, ModelFacts]]:
        """Names and facts; empty while no instance is connected."""
        facts = self._served.facts
        return [(self.model_name, facts)] if facts is not None and self._registry.connected else []
