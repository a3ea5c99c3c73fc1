"""The bfloat16 path, which runs on GPUs only, traced without running it.

Building a static program infers the dtype of every op's result. A mistake such as a float32 table meeting bfloat16
activations promotes the result, or raises in a concat, and shows here instead of on a user's GPU.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import paddle
import pytest

from qvl.hub.random_checkpoint import TINY
from qvl.model.qwen2_vl import ModelInputs, Qwen2VL
from qvl.ops import AttentionImpl, activation, attention

GRID = (2, 4, 6)
TOKENS = 12 + 8  # merged patches and text
PAST = 5
# Ops that do the work: all their floating point results must be bfloat16, but for the exceptions each test names.
HEAVY = ("matmul", "gelu", "sigmoid", "embedding")


@pytest.fixture
def program() -> Iterator[paddle.static.Program]:
    paddle.enable_static()
    paddle.set_default_dtype("bfloat16")
    program = paddle.static.Program()
    try:
        with paddle.static.program_guard(program, paddle.static.Program()):
            yield program
    finally:
        paddle.set_default_dtype("float32")
        paddle.disable_static()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Ops whose static form refuses bfloat16 in a CPU build, where no such kernel is registered.

    Each stand-in demands what the GPU kernel demands and gives a result of the same dtype and shape. Returns the
    `causal` of every flash attention call.
    """
    calls: list[bool] = []

    def swiglu(gate: paddle.Tensor, up: paddle.Tensor) -> paddle.Tensor:
        assert gate.dtype == up.dtype == paddle.bfloat16
        return gate * activation.F.sigmoid(gate) * up

    def check(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, causal: bool) -> tuple[paddle.Tensor, None]:
        assert q.dtype == k.dtype == v.dtype == paddle.bfloat16
        assert k.shape == v.shape and q.shape[-2] % k.shape[-2] == 0 and q.shape[-1] == k.shape[-1]
        assert q.shape[-1] % 8 == 0
        calls.append(causal)
        return q * 1.0, None

    def one(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, *, causal: bool) -> object:
        assert q.ndim == 4 and q.shape[0] == 1
        return check(q, k, v, causal)

    def many(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor, *rest: object, scale: float, causal: bool) -> object:
        cumulative_q, cumulative_k, longest_q, longest_k = rest
        assert cumulative_q.dtype == cumulative_k.dtype == paddle.int32  # type: ignore[attr-defined]
        assert isinstance(longest_q, int) and isinstance(longest_k, int) and scale > 0
        return check(q, k, v, causal)

    monkeypatch.setattr(activation.F, "swiglu", swiglu)
    monkeypatch.setattr(attention.F.flash_attention, "flash_attention", one)
    monkeypatch.setattr(attention.F.flash_attention, "flash_attn_unpadded", many)
    return calls


class TracedCache:
    """A cache that was filled with PAST tokens; checks that bfloat16 is what would be stored."""

    def append(self, layer: int, k: paddle.Tensor, v: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        assert k.dtype == v.dtype == paddle.bfloat16
        shape = [PAST, *k.shape[1:]]
        past = [paddle.static.data(f"{kind}{layer}", shape, "bfloat16") for kind in "kv"]
        return paddle.concat([past[0], k]), paddle.concat([past[1], v])


def results(program: paddle.static.Program) -> dict[str, set[str]]:
    dtypes = defaultdict(set)
    for op in program.global_block().ops:
        for result in op.results():
            if result.is_dense_tensor_type():
                dtypes[op.name().removeprefix("pd_op.")].add(str(result.dtype).removeprefix("paddle."))
    return dtypes


def mixed(program: paddle.static.Program) -> list[str]:
    """Ops whose floating point operands differ in dtype. Paddle promotes some in silence and fails in others."""
    found = []
    for op in program.global_block().ops:
        values = [value for value in op.operands_source() if value.initialized() and value.is_dense_tensor_type()]
        dtypes = {str(value.dtype) for value in values} & {"paddle.bfloat16", "paddle.float32", "paddle.float16"}
        # The scale of `scale` and the statistics of `layer_norm` are float32 by contract.
        if len(dtypes) > 1 and op.name() not in ("pd_op.scale", "pd_op.layer_norm"):
            found.append(op.name())
    return found


@pytest.mark.parametrize("impl", ["composed", "flash"])
@pytest.mark.parametrize("tied", [True, False])
def test_prefill_and_decode_stay_in_bfloat16(
    impl: AttentionImpl, tied: bool, program: paddle.static.Program, stand_ins: list[bool]
) -> None:
    from dataclasses import replace

    # Heads of 16 in the tower: FlashAttention has none of 12.
    vision = replace(TINY.vision_config, embed_dim=64)
    config = replace(TINY, tie_word_embeddings=tied, vision_config=vision)
    model = Qwen2VL(config, impl)
    t, h, w = GRID
    patches = paddle.static.data("patches", [t * h * w, config.vision_config.patch_dim], "bfloat16")
    features = model.visual(patches, [GRID])
    assert features.dtype == paddle.bfloat16

    inputs = ModelInputs(
        input_ids=paddle.static.data("ids", [TOKENS], "int64"),
        position_ids=paddle.static.data("positions", [3, TOKENS], "int64"),
        lengths=[TOKENS],
        features=features,
        merge_index=paddle.static.data("merge", [TOKENS], "int64"),
        logits_index=paddle.static.data("last", [1], "int64"),
    )
    embedded = model.embed(inputs)
    hidden = model.model(embedded, inputs.position_ids, inputs.lengths)
    assert embedded.dtype == hidden.dtype == paddle.bfloat16
    assert model(inputs).dtype == paddle.float32  # logits, for the sampler

    step = ModelInputs(
        input_ids=paddle.static.data("new_id", [1], "int64"),
        position_ids=paddle.static.data("new_position", [3, 1], "int64"),
        lengths=[1],
    )
    assert model(step, [TracedCache()]).dtype == paddle.float32

    assert mixed(program) == []
    found = results(program)
    assert set(HEAVY) <= set(found), "an op goes by another name now, so nothing checks it"
    for name in HEAVY:
        assert found[name] == {"bfloat16"}, f"{name} gives {found[name]}"
    layers, blocks = config.num_hidden_layers, config.vision_config.depth
    if impl == "composed":
        assert found["softmax"] == {"float32"}, "softmax is meant to be taken in float32"
        assert not stand_ins
    else:
        # Vision is not causal, nor is a lone new token, which sees everything before it.
        assert stand_ins == [False] * blocks + [True] * (2 * layers) + [False] * layers


@pytest.mark.usefixtures("stand_ins")
def test_the_trace_sees_a_dtype_mistake(program: paddle.static.Program) -> None:
    """The test above is worth something: a float32 weight among bfloat16 ones is noticed."""
    model = Qwen2VL(TINY, "composed")
    paddle.set_default_dtype("float32")
    model.model.layers[0].mlp.down_proj = paddle.nn.Linear(TINY.intermediate_size, TINY.hidden_size, bias_attr=False)
    step = ModelInputs(
        input_ids=paddle.static.data("new_id", [1], "int64"),
        position_ids=paddle.static.data("new_position", [3, 1], "int64"),
        lengths=[1],
    )
    model(step, [TracedCache()])
    assert mixed(program) == ["pd_op.matmul"]
