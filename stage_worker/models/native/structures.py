"""The structures and sizes of native.h; fields in the same order."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int64, c_void_p

GROUP = 16
"""KV slots that lie side by side in the pool."""
PANEL = 64
"""Outputs of packed weights that lie side by side."""
SCALE_BYTES = 4
"""Of the scale that a key or value has in a pool of int8."""
MOST_HEAD_DIM = 256
MOST_PARTS = 3
"""Products that are fused into one."""
ADAPTED = 4
"""Products of a layer."""
MOST_QUERY_ROWS = 48
"""Queries times query heads of one item of attention."""


def _fields(kind: type, names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, kind) for name in names.split())


class Attention(Structure):
    """Attention of one layer."""

    _fields_ = (
        *_fields(c_void_p, "qkv out keys values cos sin q_norm k_norm positions slots offsets"),
        *_fields(c_void_p, "first_positions tables order item_first item_rows item_shared"),
        *_fields(c_void_p, "item_begin item_end item_head_begin item_head_end"),
        *_fields(c_int64, "table_width heads kv_heads head_dim block_size block_stride slot_bytes kv_int8"),
        *_fields(c_int64, "window rope"),
        *_fields(c_float, "norm_eps scale"),
    )


class Bytes(Structure):
    """Rows rounded to int8."""

    _fields_ = _fields(c_void_p, "values scales shifts")


class Packed(Structure):
    """Weights of few bits."""

    _fields_ = (
        *_fields(c_void_p, "codes more scales zeros least units least_units group_of table"),
        *_fields(c_int64, "code scale_kind group groups unit_count groups_per_unit"),
        ("zero", c_float),
    )


class Product(Structure):
    """A product with packed weights."""

    _fields_ = (
        ("x", c_void_p),
        ("bytes", Bytes),
        *_fields(c_void_p, "weight scales bias out packed beside"),
        *_fields(c_int64, "rows inputs outputs stride float_out"),
    )


class Rows(Structure):
    """A pass over rows."""

    _fields_ = (
        *_fields(c_void_p, "x y weight out"),
        ("bytes", Bytes),
        *_fields(c_int64, "rows columns"),
        ("eps", c_float),
    )


class Layer(Structure):
    """One decoder layer."""

    _fields_ = (
        *_fields(c_void_p, "input_norm mlp_norm q_norm k_norm"),
        *_fields(Product, "qkv output gate_up down"),
        *_fields(c_void_p, "keys values"),
        *_fields(c_int64, "window rope"),
    )


class LowRank(Structure):
    """One adapter of one part of a product."""

    _fields_ = (*_fields(c_void_p, "down up"), *_fields(c_int64, "rank inputs outputs begin"))


class Stage(Structure):
    """A step through all layers of a stage."""

    _fields_ = (
        ("layers", c_void_p),
        ("layer_count", c_int64),
        ("attention", Attention),
        *_fields(c_void_p, "bounds residual normed qkv attended projected gate_up gated"),
        ("bytes", Bytes),
        *_fields(c_int64, "tokens hidden threads arrived"),
        ("stored", c_void_p),
        ("eps", c_float),
        ("adapters", c_int64),
        *_fields(c_void_p, "low_rank adapter_of"),
    )
