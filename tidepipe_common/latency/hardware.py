"""Devices by their data sheets, and how much of that is reached."""

from __future__ import annotations

from dataclasses import dataclass

from tidepipe_common.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device and its link to the next.

    tflops: dense bf16, 1e12/s. memory_gb, bandwidth_gb_s: 1e9 bytes. Both as on the data sheet.
    link_gb_s: reached point to point by an activation transfer; link_latency_s per message.
    allreduce_gb_s: bus bandwidth that a ring all-reduce reaches (bytes x 2(n-1)/n per device and time).

    The efficiencies are shares of the data sheet that large kernels reach. They are fitted to the published
    latency of Llama2-13B on one L20: one token takes 35.3 ms for 26.0 GB of weights (0.85 of the bandwidth),
    2,048 tokens take 509 ms for 52.6 TFLOP (0.87 of the peak, with the roofline's smooth corner).
    """

    name: str
    tflops: float
    memory_gb: float
    bandwidth_gb_s: float
    link_gb_s: float
    allreduce_gb_s: float
    link_latency_s: float = 20e-6
    compute_efficiency: float = 0.87
    bandwidth_efficiency: float = 0.85
    attention_efficiency: float = 0.5

    @property
    def flops(self) -> float:
        """Reached by matrix products, 1/s."""
        return self.tflops * 1e12 * self.compute_efficiency

    @property
    def bytes_per_s(self) -> float:
        """Reached when streaming memory."""
        return self.bandwidth_gb_s * 1e9 * self.bandwidth_efficiency

    @property
    def attention_flops(self) -> float:
        """Reached by prefill attention, 1/s."""
        return self.tflops * 1e12 * self.attention_efficiency


# Links: PCIe 4.0 x16 carries 32 GB/s raw; 20 GB/s is usual for one copy between GPUs. A ring all-reduce over
# PCIe crosses the host bridge and reaches about 12 GB/s. NVLink: 450 GB/s per direction, about 0.8 of it.
_KNOWN = (
    Hardware("l20", 119.5, 48, 864, link_gb_s=20, allreduce_gb_s=12),
    Hardware("a100", 312, 80, 1935, link_gb_s=20, allreduce_gb_s=12),
    Hardware("a800", 312, 80, 1935, link_gb_s=20, allreduce_gb_s=12),
    # One core of a server CPU with bfloat16 dot products; gRPC over loopback as the link.
    Hardware("cpu", 0.25, 8, 10, link_gb_s=0.8, allreduce_gb_s=0.8, link_latency_s=800e-6),
    Hardware("h100", 989, 80, 3350, link_gb_s=360, allreduce_gb_s=360, link_latency_s=5e-6),
)
HARDWARE = {one.name: one for one in _KNOWN}


def hardware(name: str) -> Hardware:
    """The device of that name, such as L20, a100-pcie or H100."""
    wanted = name.lower().replace("_", "-").split("-")[0]
    if wanted not in HARDWARE:
        raise ConfigError(f"unknown hardware {name!r}; known: {', '.join(sorted(HARDWARE))}")
    return HARDWARE[wanted]
