"""Scheduling policies: the state of a pipeline goes in, the contents of its next steps come out."""

from __future__ import annotations

from controller.scheduler.policies.auto import AutoPolicy
from controller.scheduler.policies.gllm import GllmPolicy
from controller.scheduler.policies.hybrid import HybridPolicy
from controller.scheduler.policies.padg import PadgPolicy
from controller.scheduler.policies.protocol import Policy
from controller.scheduler.policies.separate import SeparatePolicy
from controller.scheduler.policies.temporal import TemporalPolicy
from controller.scheduler.policies.vllm import CappedVllmPolicy, VllmPolicy

__all__ = [
    "AutoPolicy",
    "CappedVllmPolicy",
    "GllmPolicy",
    "HybridPolicy",
    "PadgPolicy",
    "Policy",
    "SeparatePolicy",
    "TemporalPolicy",
    "VllmPolicy",
]
