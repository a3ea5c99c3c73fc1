"""What each native op is timed on: at least one case for every function of the library, by its name there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from qvl.bench.opcases import attention, learning, linear, rows
from qvl.bench.opcases.case import OpCase, Sizes

Build = Callable[[Sizes], Iterator[OpCase]]

# A test compares the names with those that ext/paddle binds.
CASES: Mapping[str, Build] = {
    "rms_norm": rows.rms_norm,
    "add_rms_norm": rows.add_rms_norm,
    "layer_norm": rows.layer_norm,
    "add_layer_norm": rows.add_layer_norm,
    "swiglu": rows.swiglu,
    "quick_gelu": rows.quick_gelu,
    "attention": attention.varlen,
    "vision_attention": attention.vision,
    "rotary_store": attention.rotary_store,
    "cached_attention": attention.cached,
    "linear": linear.packed,
    "linear_dense": linear.dense,
    "mlp": linear.mlps,
    "embedding": linear.embedding,
    "pack": linear.pack,
    "unpack": linear.unpack,
    "sample": rows.sample,
    "rms_norm_grad": learning.rms_norm_grad,
    "layer_norm_grad": learning.layer_norm_grad,
    "swiglu_grad": learning.swiglu_grad,
    "quick_gelu_grad": learning.quick_gelu_grad,
    "column_sums": learning.column_sums,
    "product": learning.product,
    "attention_learning": learning.attention_learning,
    "attention_grad": learning.attention_grad,
}
