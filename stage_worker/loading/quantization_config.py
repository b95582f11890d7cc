"""What config.json says of quantized weights; what cannot be computed so is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tidepipe_common.errors import ModelError
from tidepipe_common.text.text import quoted

QUANTIZATION_KEY = "quantization_config"
_KEYS = (QUANTIZATION_KEY, "quantization", "compression_config")
_TEXT = "text_config"
METHODS = ("awq", "compressed-tensors", "fp8", "gptq", "mxfp4")
_MOST_GROUPS = 64
_PLAIN = "use the plain checkpoint (with --quantization int8 for less memory), or one of " + ", ".join(
    METHODS
)
_ELSEWHERE: Mapping[str, str] = {
    "bitsandbytes": "dequantize it with transformers (model.dequantize(), save_pretrained)",
    "torchao": "save it anew as compressed-tensors, or dequantized",
}


class Layout(Enum):
    """How codes lie in a file."""

    GPTQ = "gptq"
    AWQ = "awq"
    WORDS = "compressed-tensors, packed"
    BYTES = "bytes"
    MXFP4 = "blocks of 4-bit floats"


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are stored.

    floating: codes are 8-bit floats (e4m3). group_size: inputs in a row that share a scale; None: all.
    block: outputs and inputs of a block that shares one, or None. zero_shift: what is to be added to stored
    zero points (GPTQ's first format).
    """

    layout: Layout
    bits: int
    floating: bool = False
    group_size: int | None = None
    block: tuple[int, int] | None = None
    zero_shift: int = 0


@dataclass(frozen=True, slots=True)
class Quantization:
    """How a checkpoint's weights are stored: in one of some ways, which a weight's own tensors tell apart."""

    method: str
    schemes: tuple[Scheme, ...]


def read_quantization(config: Mapping[str, Any], source: str) -> Quantization | None:
    """What a config.json says; None if nothing. ModelError, saying what to do, for what is not there."""
    inner = config.get(_TEXT)
    if isinstance(inner, Mapping) and not any(config.get(key) for key in _KEYS):
        config = {**config, **{key: inner.get(key) for key in _KEYS}}
    if config.get("quantization"):
        raise ModelError(f"{source}: MLX's quantized weights are not supported (quantization); {_PLAIN}")
    if config.get("compression_config"):
        raise ModelError(
            f"{source}: compression_config is of an old compressed-tensors, and not supported; {_PLAIN}"
        )
    said = config.get(QUANTIZATION_KEY)
    if not said:
        return None
    if not isinstance(said, Mapping):
        raise ModelError(f"{source}: {QUANTIZATION_KEY} must be an object, got {quoted(said)}")
    method = said.get("quant_method") or ("compressed-tensors" if "config_groups" in said else "")
    keys = _Keys(said, f"{source}: {QUANTIZATION_KEY}")
    if method == "gptq":
        return _gptq(keys)
    if method == "awq":
        return _awq(keys)
    if method == "fp8":
        return _fp8(keys)
    if method == "compressed-tensors":
        return _compressed(keys)
    if method == "mxfp4":
        return Quantization("mxfp4", (Scheme(Layout.MXFP4, 4, floating=True, group_size=32),))
    advice = _ELSEWHERE.get(str(method), _PLAIN)
    name = quoted(method) if method else "(no quant_method)"
    raise ModelError(f"{keys.source}: {name} is not supported; {advice}")


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the model as it was before."""
    plain = {key: value for key, value in config.items() if key not in _KEYS}
    if isinstance(inner := plain.get(_TEXT), Mapping):
        plain[_TEXT] = {key: value for key, value in inner.items() if key not in _KEYS}
    return plain


class _Keys:
    """A JSON object whose values are checked as they are read."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def get(self, *names: str) -> Any:
        """The first of these keys that has a value."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def integer(self, *names: str) -> int:
        value = self.get(*names)
        if isinstance(value, bool) or not isinstance(value, int) or not -1 <= value <= 1 << 20:
            raise ModelError(f"{self.source}: {names[0]} must be a whole number, got {quoted(value)}")
        return value

    def bits(self, *names: str, known: tuple[int, ...]) -> int:
        value = self.integer(*names)
        if value not in known:
            raise ModelError(
                f"{self.source}: weights of {value} bits are not supported, only of "
                f"{' or '.join(map(str, known))}; {_PLAIN}"
            )
        return value

    def group(self, *names: str) -> int | None:
        value = self.integer(*names)
        if value < 1 and value != -1:
            raise ModelError(f"{self.source}: {names[0]} must be -1 or at least 1, got {value}")
        return None if value == -1 else value

    def one_of(self, name: str, known: tuple[str, ...], default: str) -> str:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, str) or value.lower() not in known:
            raise ModelError(
                f"{self.source}: {name} {quoted(value)} is not supported, only {', '.join(known)}; {_PLAIN}"
            )
        return value.lower()

    def check_names(self, name: str) -> None:
        """A list of names, where it is there at all: which weights are which is read off the tensors."""
        value = self.values.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            raise ModelError(f"{self.source}: {name} must be a list of names, got {quoted(value)}")

    def refuse(self, name: str, why: str) -> None:
        if self.values.get(name):
            raise ModelError(f"{self.source}: {name} is not supported ({why}); {_PLAIN}")


def _gptq(keys: _Keys) -> Quantization:
    keys.refuse("is_marlin_format", "weights in the order of a GPU kernel")
    keys.refuse("dynamic", "modules with settings of their own")
    keys.refuse("adapter", "an adapter beside the weights")
    keys.one_of("pack_dtype", ("int32",), "int32")
    kind = keys.one_of("checkpoint_format", ("gptq", "gptq_v2"), str(keys.get("format") or "gptq"))
    scheme = Scheme(
        Layout.GPTQ,
        keys.bits("bits", known=(4, 8)),
        group_size=keys.group("group_size"),
        zero_shift=1 if kind == "gptq" else 0,
    )
    return Quantization("gptq", (scheme,))


def _awq(keys: _Keys) -> Quantization:
    keys.one_of("version", ("gemm",), str(keys.get("format") or "gemm"))
    bits = keys.bits("bits", "w_bit", known=(4,))
    return Quantization(
        "awq", (Scheme(Layout.AWQ, bits, group_size=keys.group("group_size", "q_group_size")),)
    )


def _fp8(keys: _Keys) -> Quantization:
    keys.one_of("fmt", ("e4m3", "float8_e4m3fn"), "e4m3")
    keys.one_of("scale_fmt", ("float", "float32", "ue8m0"), "float")
    return Quantization(
        "fp8", (Scheme(Layout.BYTES, 8, floating=True, block=_block(keys, "weight_block_size")),)
    )


def _compressed(keys: _Keys) -> Quantization:
    sparsity = keys.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, Mapping) and sparsity.get("format", "dense") == "dense"):
        keys.refuse("sparsity_config", "sparse weights")
    keys.refuse("transform_config", "transforms beside the weights")
    keys.check_names("ignore")
    groups = keys.get("config_groups")
    if not isinstance(groups, Mapping) or not 1 <= len(groups) <= _MOST_GROUPS:
        raise ModelError(f"{keys.source}: config_groups must be an object of 1 to {_MOST_GROUPS} groups")
    schemes = []
    for name, group in groups.items():
        source = f"{keys.source}: {quoted(name)}"
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            raise ModelError(f"{source}: weights is missing; {_PLAIN}")
        own = _Keys(group, source)
        own.check_names("targets")
        form = own.one_of("format", _FORMATS, str(keys.get("format") or "(none)"))
        if form != "dense":
            schemes.append(_compressed_scheme(_Keys(weights, f"{source}: weights"), form))
    return Quantization("compressed-tensors", tuple(schemes))


_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
    "dense",
)


def _compressed_scheme(keys: _Keys, form: str) -> Scheme:
    floating = keys.one_of("type", ("int", "float"), "int") == "float"
    words = form == "pack-quantized" or (form == "mixed-precision" and keys.get("num_bits") == 4)
    bits = keys.bits("num_bits", known=(8,) if floating or not words else (4, 8))
    strategy = keys.one_of("strategy", ("group", "channel", "tensor", "block"), "tensor")
    if floating and words:
        raise ModelError(f"{keys.source}: packed floats are not supported; {_PLAIN}")
    return Scheme(
        Layout.WORDS if words else Layout.BYTES,
        bits,
        floating=floating,
        group_size=keys.group("group_size") if strategy == "group" else None,
        block=_block(keys, "block_structure") if strategy == "block" else None,
    )


def _block(keys: _Keys, name: str) -> tuple[int, int] | None:
    sizes = keys.get(name)
    if sizes is None:
        return None
    if (
        not isinstance(sizes, list)
        or len(sizes) != 2
        or not all(type(size) is int and 1 <= size <= 1 << 20 for size in sizes)
    ):
        raise ModelError(f"{keys.source}: {name} must be two whole numbers, got {quoted(sizes)}")
    return sizes[0], sizes[1]
