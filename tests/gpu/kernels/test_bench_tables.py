"""What the benchmark says of its figures, and the bytes that it counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.gpu.kernels import packed
from tests.gpu.kernels.bench import tables, traffic
from tests.gpu.kernels.bench.cases import Case, Rotation
from tests.gpu.kernels.bench.sizes import QWEN_2B, QWEN_7B, QWEN_72B, TINY_MODEL, Model
from tests.gpu.kernels.packed import KINDS, packing, said

FACTS = {"card": "Card", "driver": "1.2", "cuda": "13.0", "torch": "2.13", "date": "2026-11-29", "commit": "abc"}
PEAKS = {"bandwidth": 2e12, "product": 1e15}


def _time(median: float) -> dict[str, Any]:
    return {"median": median, "low": 0.9 * median, "high": 1.2 * median, "rounds": 30, "calls": 4}


def _case(op: str, sides: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"op": op, "model": "2B", "shape": "8 rows", "bytes": 1 << 20, "flops": 0, "sides": sides, "sets": 4} | more


def _record(**more: Any) -> dict[str, Any]:
    facts = FACTS | {"transformers": "5.0"}
    return {"facts": facts, "peaks": PEAKS, "steps": [], "cases": [], "left_out": [], "seconds": 1.0} | more


def test_a_table_of_an_op() -> None:
    sides = {"ours": _time(1.0), "eager": _time(2.5), "compiled": {"reason": "no | way"}}
    cases = [_case("rms_norm", sides), _case("rms_norm", {"ours": _time(2.0)}, shape="64 rows", bytes=3_000_000)]
    cases.append(_case("linear", {"ours": _time(10.0), "cublas": _time(5.0)}, flops=10**9))
    lines = list(tables.markdown(_record(cases=cases)))
    assert lines[0].startswith("Card, driver 1.2, CUDA 13.0, torch 2.13, 2026-11-29, abc. A copy moves 2000 GB/s")
    assert "|  | µs | of copy bandwidth | torch | torch.compile |" in lines
    assert "| 2B, 8 rows | 1.0 (0.9 to 1.2) | 52 % | 2.50x | no / way |" in lines
    assert "| 2B, 64 rows | 2.0 (1.8 to 2.4) | 75 % | - | - |" in lines
    assert "| 2B, 8 rows | 10.0 (9.0 to 12.0) | 5 % | 10.0 % | 0.50x |" in lines
    assert [line for line in lines if line.startswith("###")] == ["### rms_norm", "### linear"]
    columns = {line.count("|") for line in lines if line.startswith("|") and "2B, 8 rows | 10" not in line}
    assert columns == {6}


def test_a_table_of_steps() -> None:
    ours = {"model": "2B", "side": "int8", "batch": 1, "context": 1024, "weight_bytes": 2 * 10**9} | _time(1200.0)
    ours |= {"parts": {"qkv": 100.4, "o": 50.0}}
    theirs = {"model": "2B", "side": "transformers", "batch": 1, "context": 1024, "reason": "ImportError: none"}
    lines = list(tables.markdown(_record(steps=[ours, theirs])))
    assert "| 2B, int8, batch 1, context 1024 | 1200.0 (1080.0 to 1440.0) | 2.00 GB | 1000 | 1.20x |" in lines
    assert "| 2B, transformers, batch 1, context 1024 | ImportError: none | - | - | - |" in lines
    assert "| 2B, int8, batch 1 | 100 | 50 |" in lines
    assert any(line.startswith("transformers 5.0: its modules") for line in lines)


def test_what_failed_or_was_left_out_is_said() -> None:
    case = _case("swiglu", {"ours": {"reason": "KernelError: swiglu: failed"}, "eager": _time(1.0)}, flops=5)
    lines = list(tables.markdown(_record(cases=[case], left_out=["sample 2B", "sample 7B"])))
    assert "| 2B, 8 rows | KernelError: swiglu: failed | - | - | - |" in lines
    assert lines[-1] == "Left out for lack of time: sample 2B, sample 7B."
    assert tables.sentence(case, PEAKS) == "swiglu 2B 8 rows: KernelError: swiglu: failed"
    slow = _time(2.0) | {"note": "without a graph: RuntimeError: it waits"}
    lines = list(tables.markdown(_record(cases=[_case("sample", {"ours": slow, "eager": slow})])))
    assert (
        "| 2B, 8 rows | 2.0 (1.8 to 2.4), without a graph: RuntimeError: it waits | 26 % | 1.00x, without a graph |"
        in lines
    )
    good = _case("swiglu", {"ours": _time(1.0), "eager": _time(2.0), "compiled": {"reason": "no"}})
    assert tables.sentence(good, PEAKS) == "swiglu 2B 8 rows: 1.0 us, 52 % of a copy; eager 2.00x; compiled -"


@pytest.mark.parametrize("kind", KINDS, ids=said)
def test_bytes_of_packed_weights(kind: packing.Packing) -> None:
    matrix = packed.matrix(np.random.default_rng(0), kind, 40, 200)
    assert traffic.packed(kind, 40, 200) == matrix.nbytes


def test_bytes_of_ops() -> None:
    """Of arrays as the ops are given them."""
    model, rows, half = TINY_MODEL, 3, np.float16
    x, width = np.empty((rows, model.hidden), half), model.hidden
    assert traffic.rms_norm(rows, width) == 4 * x.nbytes + np.empty(width, half).nbytes
    cache = np.empty((2, 50, model.kv_heads, model.dim), half)
    assert traffic.cached(model, 50, "bfloat16") == cache.nbytes
    assert traffic.cached(model, 50, "int8") == cache.size + np.empty((2, 50, model.kv_heads), np.float32).nbytes
    q = np.empty((rows, model.heads, model.dim), half)
    assert traffic.attention(model, rows, 50, "bfloat16") == rows * cache.nbytes + 2 * q.nbytes
    qkv, new = np.empty((rows + 1, sum(model.qkv)), half), np.empty((2, rows, model.kv_heads, model.dim), half)
    table = np.empty((rows, model.dim // 2), np.float32)
    moved = qkv.nbytes + 2 * table.nbytes + q.nbytes + new.nbytes
    assert traffic.rotary_store(model, rows, "bfloat16") == moved
    logits = np.empty((rows, model.vocab), half)
    ids_and_losses = np.empty(rows, np.int64).nbytes + np.empty(rows, np.float32).nbytes
    assert traffic.cross_entropy(rows, model.vocab, gradient=True) == 2 * logits.nbytes + ids_and_losses
    assert traffic.product(1000, rows, 20, 30) == 1000 + np.empty((rows, 50), half).nbytes


@pytest.mark.parametrize(
    ("model", "parameters"), [(QWEN_2B, 1_543_714_304), (QWEN_7B, 7_615_616_512), (QWEN_72B, 72_706_203_648)]
)
def test_models_have_as_many_parameters_as_published(model: Model, parameters: int) -> None:
    products = sum(n * k for n, k in model.products.values())
    layer = products + sum(model.qkv) + 2 * model.hidden
    tables_of_words = (1 if model.tied else 2) * model.vocab * model.hidden
    assert model.layers * layer + model.hidden + tables_of_words == parameters


def test_operands_take_turns_until_no_cache_holds_them() -> None:
    rotation = Rotation(cache=50 << 20, most=24)

    def sets(size: int) -> int:
        return rotation.sets(Case("op", "2B", "", size, lambda: pytest.fail("not needed")))

    assert sets(1 << 30) == 1
    assert sets(20 << 20) == 10
    assert sets(1 << 10) == 24
