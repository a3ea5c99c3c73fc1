"""Attention of the newest tokens to their cache, against float64 and against what eager 16-bit code makes of it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels.caches import Cache, filled_cache, sequences_of
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, assert_close, rounded, rounding
from tests.gpu.kernels.structs_attention import AttentionParams

Array = npt.NDArray[Any]
STORED = [("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "int8"), ("float16", "int8")]
STORED += [("float32", "float32"), ("float32", "int8")]


@dataclass(frozen=True)
class Shape:
    """rows: keys before the new tokens and new tokens, of each sequence."""

    heads: int
    kv_heads: int
    dim: int
    rows: tuple[tuple[int, int], ...]
    most_keys: int = 0  # 0: what is needed

    @property
    def most(self) -> int:
        return self.most_keys or max(start + tokens for start, tokens in self.rows)


# Groups of 1, 6, 7 and 8 heads; one, two, three, four and eight tiles of rows; one part, two, three, and more than
# there are warps to join them; lengths around slices of 16, steps of 64, parts of 128 and four parts of 192; a sequence
# without new tokens.
SMALL = [
    Shape(12, 2, 128, ((0, 1), (16, 1), (199, 1))),
    Shape(7, 1, 80, ((61, 5), (0, 3), (5, 0), (127, 1))),
    Shape(8, 1, 64, ((62, 1), (63, 1), (64, 1), (271, 3))),
    Shape(8, 1, 64, ((1, 16),)),
    Shape(2, 2, 16, ((130, 16), (16, 2))),
    Shape(2, 1, 256, ((33, 1), (120, 11))),
    Shape(5, 1, 48, ((126, 4),)),
    Shape(6, 1, 64, ((299, 2),)),
    Shape(2, 2, 16, ((768, 1),)),
    Shape(2, 1, 16, ((1160, 1),), most_keys=32768),
]
HEADS = [(12, 2), (28, 4), (64, 8)]
LARGE = [
    *(Shape(*heads, 128, ((keys - 1, 1),)) for heads in HEADS for keys in (1, 17, 1000, 4096, 32768)),
    *(Shape(*heads, 128, ((keys - 5, 5),)) for heads in HEADS for keys in (200, 8191)),
    *(Shape(*heads, 128, tuple((23 * i + 500, 1) for i in range(64))) for heads in HEADS),
    Shape(28, 4, 128, tuple((400 * i + 64 * (i % 2), 1 + i % 16) for i in range(16))),
    Shape(28, 4, 128, ((20000, 1), *((300 + i, 1) for i in range(31)))),
]


@dataclass
class Case:
    """Operands on the device, and as the references take them."""

    shape: Shape
    dtype: str
    storage: str
    q: Array
    caches: list[Cache]
    scale: float
    buffers: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        return [tokens for _, tokens in self.shape.rows]

    def truth(self) -> Array:
        return self._rows(lambda x: x, np.float64)

    def naive(self) -> Array:
        """Rounded after the loads, both products, the scale and softmax, which is float32 inside."""
        return self._rows(rounding(self.dtype), np.float32)

    def _rows(self, r: Any, wide: Any) -> Array:
        heads = (self.shape.kv_heads, self.shape.heads // self.shape.kv_heads, self.shape.dim)
        rows, first = [], 0
        for (start, tokens), cache in zip(self.shape.rows, self.caches, strict=True):
            keys, values = (x.transpose(1, 0, 2) for x in cache.loaded(r, wide))
            for i in range(tokens):
                q, n = self.q[first + i].astype(wide).reshape(heads), start + i + 1
                scores = r(r(np.matmul(q, keys[:, :n].transpose(0, 2, 1))) * wide(self.scale))
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                weights = r(weights / weights.sum(axis=-1, keepdims=True))
                rows.append(r(np.matmul(weights, values[:, :n])).reshape(self.q.shape[1:]))
            first += tokens
        return np.stack(rows)


def _case(device: Device, shape: Shape, dtype: str, storage: str, **sizes: float) -> Case:
    """sizes: q, k and v, how large their elements are."""
    rng = np.random.default_rng(shape.heads * shape.dim + shape.most)
    rows = sum(tokens for _, tokens in shape.rows)
    q = rounded(sizes.get("q", 1.0) * rng.normal(size=(rows, shape.heads, shape.dim)), dtype)
    caches = []
    for start, tokens in shape.rows:
        size = (start + tokens, shape.kv_heads, shape.dim)
        k, v = (rng.standard_normal(size, dtype=np.float32) for _ in range(2))
        k, v = sizes.get("k", 1.0) * k, sizes.get("v", 1.0) * v
        caches.append(filled_cache(device, storage, k, v, spare=3))
    return Case(shape, dtype, storage, q, caches, shape.dim**-0.5)


def _params(device: Device, case: Case, *, strides: tuple[int, int] = (0, 0), **changed: Any) -> AttentionParams:
    """The struct; what it points to is kept by `case`. strides: elements behind each row of q and of out."""
    shape, width = case.shape, case.shape.heads * case.shape.dim
    whole = np.full((len(case.q), width + strides[0]), np.nan, dtype=np.float32)
    whole[:, :width] = case.q.reshape(len(case.q), width)
    kept = case.buffers
    kept["q"] = device.floats(whole, case.dtype)
    kept["out"] = device.empty((len(case.q), width + strides[1]), case.dtype)
    kept["starts"] = device.put(np.array([start for start, _ in shape.rows], dtype=np.int32))
    kept["sequences"] = sequences_of(case.caches, case.tokens)
    given = {name: kept[name].pointer for name in ("q", "out", "starts")}
    given |= {"sequences": ctypes.addressof(kept["sequences"]), "count": len(shape.rows)}
    given |= {"heads": shape.heads, "kv_heads": shape.kv_heads, "dim": shape.dim, "most_keys": shape.most}
    given |= {"q_stride": width + strides[0], "out_stride": width + strides[1], "scale": case.scale}
    codes = {"dtype": CODES[case.dtype], "storage": CODES[case.storage]}
    params = AttentionParams(**(codes | given | changed))
    kept["workspace"] = device.workspace("attention", params)
    params.workspace = kept["workspace"].pointer if kept["workspace"] else None
    return params


def _run(device: Device, case: Case, **options: Any) -> Array:
    device.call("attention", _params(device, case, **options))
    width = case.shape.heads * case.shape.dim
    return case.buffers["out"].numpy()[:, :width].reshape(case.q.shape)


def _check(case: Case, out: Array) -> None:
    assert_close(out, case.truth(), case.naive(), case.dtype)


def _shapes(device: Device) -> list[Shape]:
    return [*SMALL, *LARGE] if device.real else SMALL


@pytest.mark.parametrize(("dtype", "storage"), STORED)
def test_lengths_groups_and_sizes_of_heads(device: Device, dtype: str, storage: str) -> None:
    """Rows of a cache behind the last token are not numbers, and must not matter."""
    for shape in _shapes(device):
        case = _case(device, shape, dtype, storage)
        _check(case, _run(device, case))


@pytest.mark.parametrize(("dtype", "storage"), STORED)
def test_large_and_small_scores(device: Device, dtype: str, storage: str) -> None:
    """No score is too large for its exponential, and no weight times the scale of a large value for 16 bits."""
    shape = Shape(7, 1, 64, ((140, 1), (17, 2)))
    for sizes in ({"q": 30.0, "k": 30.0}, {"q": 0.1, "v": 1e-3}, {"q": 4.0, "v": 1e4}):
        case = _case(device, shape, dtype, storage, **sizes)
        _check(case, _run(device, case))


@pytest.mark.parametrize(("storage", "small"), [("float16", -15.13), ("int8", -13.83)])
def test_many_small_weights_keep_their_digits(device: Device, storage: str, small: float) -> None:
    """Below 2**-14 a float16 has ever fewer of them; here all but one of the keys have such a weight."""
    case = _case(device, Shape(1, 1, 16, ((150, 1),)), "float16", storage)
    k, v = np.zeros((151, 1, 16)), np.full((151, 1, 16), 127.0)
    k[1:, :, 0], v[0] = rounded(small, "float16"), 0
    case.q[:], case.scale, case.caches = 1.0, 1.0, [filled_cache(device, storage, k, v, spare=1)]
    np.testing.assert_allclose(_run(device, case), case.truth(), rtol=2**-10)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_a_graph_made_for_a_long_context_serves_a_short_one(device: Device, storage: str) -> None:
    """The same struct, while other lengths come to lie in device memory."""
    shape = Shape(6, 1, 64, ((140, 1), (0, 1), (30, 1)), most_keys=32768 if device.real else 1500)
    case = _case(device, shape, "bfloat16", storage)
    params = _params(device, case)
    device.call("attention", params)
    _check(case, case.buffers["out"].numpy().reshape(case.q.shape))
    other = Shape(6, 1, 64, ((64, 1), (0, 1), (15, 1)), shape.most_keys)
    shorter = device.put(np.array([start for start, _ in other.rows], dtype=np.int32))
    params.starts = shorter.pointer
    device.call("attention", params)
    again = Case(other, "bfloat16", storage, case.q, case.caches, case.scale)
    _check(again, case.buffers["out"].numpy().reshape(case.q.shape))


def test_rows_lie_apart(device: Device) -> None:
    case = _case(device, Shape(6, 2, 32, ((40, 2), (7, 1))), "bfloat16", "bfloat16")
    _check(case, _run(device, case, strides=(64, 8)))
    assert np.isnan(case.buffers["out"].numpy()[:, 6 * 32 :]).all()


@pytest.mark.parametrize(("dtype", "storage"), [("bfloat16", "bfloat16"), ("float32", "int8")])
def test_more_sequences_than_a_launch_takes(device: Device, dtype: str, storage: str) -> None:
    shape = Shape(2, 1, 16, tuple((i % 19, i % 3) for i in range(67)))
    case = _case(device, shape, dtype, storage)
    _check(case, _run(device, case))


@pytest.mark.parametrize(("dtype", "storage"), [("bfloat16", "bfloat16"), ("float16", "int8"), ("float32", "float32")])
def test_a_row_does_not_depend_on_the_others(device: Device, dtype: str, storage: str) -> None:
    """To the last bit: on the contents of other sequences, on their lengths, and on the other queries of its own."""
    shape = Shape(7, 1, 64, ((70, 3), (150, 1)))
    case = _case(device, shape, dtype, storage)
    before = _run(device, case)
    other = _case(device, Shape(7, 1, 64, ((70, 3), (9, 1)), shape.most), dtype, storage, q=9.0)
    other.caches[0], other.q[1] = case.caches[0], case.q[1]
    other.q[0] = np.nan
    after = _run(device, other)
    assert np.array_equal(before[1], after[1]) and np.isnan(after[0]).all()
    assert np.isfinite(after[2:]).all() and not np.array_equal(before[2], after[2])


@pytest.mark.parametrize(("dtype", "storage"), [("bfloat16", "bfloat16"), ("float16", "int8"), ("float32", "float32")])
def test_the_order_in_which_threads_run_does_not_matter(device: Device, dtype: str, storage: str) -> None:
    case = _case(device, Shape(7, 1, 128, ((150, 3), (40, 1))), dtype, storage)
    before = _run(device, case)
    with device.other_order():
        assert np.array_equal(before, _run(device, case))


def test_nothing_to_do(device: Device) -> None:
    case = _case(device, Shape(6, 2, 32, ((40, 1),)), "bfloat16", "bfloat16")
    params = _params(device, case)
    case.buffers["sequences"][0].tokens = 0
    device.call("attention", params)
    assert np.isnan(case.buffers["out"].numpy()).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"dim": 24},
        {"dim": 272},
        {"kv_heads": 4},
        {"storage": CODES["float16"]},
        {"dtype": CODES["int8"], "storage": CODES["int8"]},
        {"q_stride": 193},
        {"out_stride": 196},
    ],
    ids=str,
)
def test_what_has_no_body_is_refused(device: Device, changed: dict[str, int]) -> None:
    case = _case(device, Shape(6, 2, 32, ((40, 1),)), "bfloat16", "bfloat16")
    assert device.status("attention", _params(device, case, **changed)) == "unsupported"


def test_too_many_queries_are_refused(device: Device) -> None:
    case = _case(device, Shape(2, 1, 16, ((40, 17),)), "bfloat16", "bfloat16")
    assert device.status("attention", _params(device, case)) == "unsupported"
