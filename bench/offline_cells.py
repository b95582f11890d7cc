"""The cells of the offline benchmarks: models x length mixes on four devices, as in TD-Pipe's evaluation."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from simulator.offline import PipelineSpec
from tidepipe_common.latency.files import read_shape
from tidepipe_common.latency.hardware import hardware
from tidepipe_common.latency.profile_file import read_profile
from workloads.files import open_workload
from workloads.mixes import SYNTHETIC, Workload, sharegpt_like

MAX_PROMPT = 1024
MAX_TOTAL = 2048
"""The paper's limits: prompt, and prompt with output, tokens."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model, one device kind, one length mix."""

    model: str
    device: str
    mix: str
    spec: PipelineSpec
    trace: Path

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.model} / {self.device} / {self.mix}"

    def workload(self, requests: int, seed: int) -> Workload:
        """Requests drawn with this seed."""
        if self.mix == SYNTHETIC:
            return sharegpt_like(requests, seed)
        source = open_workload(str(self.trace), None, seed)
        return source.within(MAX_PROMPT, MAX_TOTAL).sample(requests, seed).at_once()


def cells(models: str, devices: str, trace: Path, profile: Path | None, stages: int = 4) -> list[Cell]:
    """All combinations; the measured profile is that of Llama2-13B on one L20."""
    found = []
    for device in devices.split(","):
        for model in models.split(","):
            measured = profile is not None and (model, device) == ("llama2-13b", "l20")
            table = read_profile(profile) if measured and profile is not None else None
            spec = PipelineSpec(read_shape(model), hardware(device), stages, table, MAX_TOTAL)
            found += [Cell(model, device, mix, spec, trace) for mix in (SYNTHETIC, "trace")]
    return found


def study_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all studies of cells have; each adds its models, devices and seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--profile", type=Path, default=None, help="tokens,ms of Llama2-13B on one L20")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    return parser
