"""What the next steps contain: policies as values on one scheduler."""

from __future__ import annotations

from controller.core.policies.hybrid import HybridPolicy
from controller.core.policies.padg import PadgPolicy
from controller.core.policies.protocol import Policy
from controller.core.policies.separate import SeparatePolicy
from controller.core.policies.temporal import TemporalPolicy
from controller.core.policies.tide import TidePolicy

__all__ = ["HybridPolicy", "PadgPolicy", "Policy", "SeparatePolicy", "TemporalPolicy", "TidePolicy"]
