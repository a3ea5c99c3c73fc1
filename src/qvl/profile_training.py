"""The `training` section of a profile: what `qvl finetune` learns, with what recipe, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from qvl.schema import Range

_Count = Annotated[int, Range(at_least=1)]
_Share = Annotated[float, Range(at_least=0, at_most=1)]

LANGUAGE_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraOptions:
    """rank, alpha: updates are scaled by alpha / rank, or alpha / sqrt(rank) with rslora.

    targets: projections of the language model, by their last name. parts: also "vision" and "merger" when named.
    """

    rank: _Count = 16
    alpha: Annotated[float, Range(above=0)] = 32.0
    dropout: Annotated[float, Range(at_least=0, at_most=0.99)] = 0.0
    rslora: bool = False
    targets: tuple[str, ...] = LANGUAGE_TARGETS
    parts: tuple[str, ...] = ("language",)


@dataclass(frozen=True)
class TrainingOptions:
    """See docs/finetune.md for the keys in words.

    train: parts that learn with method "full"; the others are frozen and hold neither gradient nor optimiser state.
    batch_size: conversations an update, over all devices; micro_batch_size of them at a time on each.
    epochs: passes over the data, unless max_steps says how many updates. warmup_steps: below 1, a share of all.
    max_length: tokens of a sample; a longer one is dropped and counted, or an error. Nothing is ever cut.
    recompute: keep only the input of each layer and compute it again in the backward pass.
    eval_split: the share of the samples held out; their loss is taken every eval_steps, and the best checkpoint kept.
    eval_answers: so many of them are also answered by the model then.
    workers: processes that decode ahead; threads for a short run, and to look at the data before it. cache_mb: memory
    for decoded samples, which then are not decoded every epoch.
    sharding: "stage1" shares the optimiser's state among the devices instead of keeping all of it on each; "stage2" the
    gradients of the language model's matrices as well; "stage3" also these matrices, learning or not.
    loss_chunk: supervised tokens whose logits are held at a time.
    products: of linear layers, on a CPU; "bfloat16" rounds what they multiply, for which it needs AVX512-BF16 or AMX,
    "auto" does where it can.
    """

    method: Literal["full", "lora"] = "lora"
    train: tuple[Literal["vision", "merger", "language"], ...] = ("language",)
    lora: LoraOptions = field(default_factory=LoraOptions)
    learning_rate: Annotated[float, Range(above=0)] = 1e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Annotated[float, Range(at_least=0)] = 0.03
    weight_decay: Annotated[float, Range(at_least=0)] = 0.1
    adam_beta1: _Share = 0.9
    adam_beta2: _Share = 0.999
    adam_epsilon: Annotated[float, Range(above=0)] = 1e-8
    max_grad_norm: Annotated[float, Range(at_least=0)] = 1.0
    batch_size: _Count = 32
    micro_batch_size: _Count = 1
    epochs: Annotated[float, Range(above=0)] = 1.0
    max_steps: _Count | None = None
    max_length: _Count = 8192
    on_long: Literal["drop", "error"] = "drop"
    on_bad_sample: Literal["error", "skip"] = "error"
    balance_lengths: bool = True
    workers: Annotated[int, Range(at_least=0)] = 2
    cache_mb: Annotated[int, Range(at_least=0)] = 256
    recompute: bool = False
    sharding: Literal["none", "stage1", "stage2", "stage3"] = "stage1"
    loss_chunk: _Count = 256
    products: Literal["float32", "bfloat16", "auto"] = "float32"
    save_steps: _Count = 100
    save_total_limit: _Count = 2
    eval_split: Annotated[float, Range(at_least=0, at_most=0.9)] = 0.0
    eval_steps: _Count = 100
    eval_answers: Annotated[int, Range(at_least=0)] = 0
    seed: Annotated[int, Range(at_least=0)] = 42
