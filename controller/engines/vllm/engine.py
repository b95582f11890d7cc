"""vLLM's workers under our hand: brought up, told what to compute, waited for, ended. Its calls block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from controller.engines.vllm import worker_side
from controller.engines.vllm.engine_options import EngineOptions, divided_layers
from controller.engines.vllm.mapping import NULL_BLOCKS
from controller.engines.waiting import sleep_while_waiting
from tidepipe_common.end_tokens import end_tokens
from tidepipe_common.errors import ConfigError
from tidepipe_common.structures.state import Grammars
from tidepipe_common.structures.tokenizer_file import read_tokenizer
from tidepipe_common.types.model_shape import ModelShape

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput


class PendingStep:
    """A step that vLLM's workers have been told of."""

    def __init__(self, executed: Future[Any], sampled: Future[Any]) -> None:
        self._executed = executed
        self._sampled = sampled

    def result(self) -> ModelRunnerOutput:
        """What came out of it, once it is done. Raises what the workers raised, or that they are gone."""
        # What went wrong there leaves nothing to sample from.
        self._executed.result()
        output: ModelRunnerOutput = self._sampled.result()
        return output


class VllmEngine:
    """Workers with the model loaded and KV blocks ready. blocks: KV blocks that sequences may have."""

    def __init__(self, options: EngineOptions, lost: Callable[[str], None]) -> None:
        """lost: is told, from another thread, that a worker has ended by itself.

        ConfigError if vLLM does not take the options, or the model needs more than full attention.
        """
        self.options = options
        self.config = make_config(options)
        if self.config.device_config.device_type == "cpu":
            sleep_while_waiting()
        self._executor = _start(self.config)
        try:
            self._executor.register_failure_callback(lambda: lost("a worker of vLLM's has ended"))
            self.blocks = self._prepare()
            self._executor.collective_rpc(worker_side.begin)
            self.pids: list[list[int]] = _pids(self._executor)
        except BaseException:
            self.shutdown()
            raise
        self.block_size = int(self.config.cache_config.block_size)
        self.device = str(self.config.device_config.device_type)
        self.dtype = str(self.config.model_config.dtype).removeprefix("torch.")
        self.longest = int(self.config.model_config.max_model_len)
        self.vocab_size = int(self.config.model_config.get_vocab_size())

    def _prepare(self) -> int:
        """KV caches, as vLLM's own engine makes them."""
        from vllm.plugins import load_general_plugins
        from vllm.v1.engine.core import EngineCore

        class Caches(EngineCore):  # type: ignore[misc]
            """Of vLLM's engine the part that measures memory and makes KV caches."""

            def __init__(self, executor: Any) -> None:
                self.model_executor = executor
                self.available_gpu_memory_for_kv_cache = -1

        load_general_plugins()
        found = Caches(self._executor)._initialize_kv_caches(self.config)
        check_groups(found, self.options.model)
        return int(found.num_blocks) - NULL_BLOCKS

    def execute(self, output: SchedulerOutput) -> Future[Any]:
        """Tell all workers of a step; waits only if they have many to come. `sample` must follow."""
        executed: Future[Any] = self._executor.execute_model(output, non_block=True)
        return executed

    def sample(self, executed: Future[Any], masks: GrammarOutput | None) -> PendingStep:
        """Let that step end in tokens. masks: of sequences that may not have every token."""
        return PendingStep(executed, self._executor.sample_tokens(masks, non_block=True))

    def grammars(self) -> Grammars:
        """What makes those masks."""
        return Grammars(partial(read_tokenizer, Path(self.options.path)), self.vocab_size)

    def shape(self) -> ModelShape:
        """Of the model, as its configuration says."""
        model, text = self.config.model_config, self.config.model_config.hf_text_config
        parallel = self.config.parallel_config
        heads = int(text.num_attention_heads)
        return ModelShape(
            architecture=str(model.architecture),
            layers=int(text.num_hidden_layers),
            hidden=int(model.get_hidden_size()),
            heads=heads,
            kv_heads=int(model.get_num_kv_heads(parallel)) * self.options.tensor_parallel,
            head_dim=int(model.get_head_size()),
            intermediate=int(getattr(text, "intermediate_size", 0) or 4 * model.get_hidden_size()),
            vocab_size=self.vocab_size,
            context_length=self.longest,
            eos_token_ids=_eos(model, Path(self.options.path)),
            tied_embeddings=bool(getattr(text, "tie_word_embeddings", False)),
        )

    def fingerprint(self) -> str:
        """Hex digest of what answers depend on: configuration, type of the weights, sizes of their files."""
        model = self.config.model_config
        folder = Path(self.options.path)
        files = [folder] if folder.is_file() else sorted(folder.glob("*.safetensors"))
        facts = {
            "engine": "vllm",
            "config": model.hf_config.to_diff_dict(),
            "dtype": self.dtype,
            "longest": self.longest,
            "files": [(file.name, file.stat().st_size) for file in files],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def layers(self) -> list[tuple[int, int]]:
        """First layer of each stage, and one past its last."""
        return divided_layers(self.config)

    def shutdown(self) -> None:
        """End the workers; what waits for them is told. May be called again."""
        self._executor.shutdown()


def make_config(options: EngineOptions) -> Any:
    """vLLM's configuration; ConfigError in its own words if it does not take the options."""
    from vllm.engine.arg_utils import EngineArgs

    arguments = options.arguments()
    known = EngineArgs.__dataclass_fields__
    if strange := [name for name in arguments if name not in known]:
        raise ConfigError(f"--engine-args: vLLM has no engine argument {strange[0]!r}")
    try:
        config = EngineArgs(**arguments).create_engine_config()
    except (ValueError, TypeError, OSError, NotImplementedError) as error:
        raise ConfigError(f"vLLM does not take these settings: {_plain(error)}") from error
    if config.model_config.runner_type != "generate":
        raise ConfigError(f"{options.model} does not generate text, and only such models are served")
    if config.device_config.device_type == "cpu" and options.stages > 1 and config.model_config.enforce_eager:
        raise ConfigError("--engine-args: on CPUs vLLM computes no pipeline with enforce_eager; leave it out")
    return config


def check_groups(caches: Any, model: str) -> None:
    """ConfigError if the model keeps another KV cache than that of full attention in every layer."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    kinds = [group.kv_cache_spec for group in caches.kv_cache_groups]
    plain = len(kinds) == 1 and isinstance(kinds[0], FullAttentionSpec) and not kinds[0].sliding_window
    if not plain or caches.needs_kv_cache_zeroing:
        names = ", ".join(sorted({type(kind).__name__ for kind in kinds})) or "none"
        raise ConfigError(
            f"{model} needs another KV cache than that of full attention in every layer ({names}), which "
            "TidePipe cannot keep for vLLM; let vLLM keep it: docs/guide/vllm.md"
        )


def _start(config: Any) -> Any:
    from vllm.v1.executor import Executor

    return Executor.get_class(config)(config)


def _pids(executor: Any) -> list[list[int]]:
    """Of the workers of each stage, where they run on this machine."""
    workers = getattr(executor, "workers", [])
    width = int(executor.parallel_config.tensor_parallel_size)
    stages = [workers[first : first + width] for first in range(0, len(workers), width)]
    return [[int(handle.proc.pid) for handle in stage if hasattr(handle, "proc")] for stage in stages]


def _eos(model: Any, path: Path) -> tuple[int, ...]:
    """Tokens that end an output."""
    said = model.try_get_generation_config().get("eos_token_id")
    of_model = getattr(model.hf_text_config, "eos_token_id", None)
    ids: list[int] = []
    for value in (said, of_model):
        ids += value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if path.is_dir():
        ids += end_tokens(path, turns=said is None)
    return tuple(dict.fromkeys(ids))


def _plain(error: BaseException) -> str:
    """Pydantic's many lines as one."""
    return " ".join(str(error).split())[:600] or type(error).__name__
