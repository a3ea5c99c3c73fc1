"""rotary_store, rotate and rotate_grad, against float64 and against what eager 16-bit code makes of them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels.caches import Cache, empty_cache, sequences_of
from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, DTYPES, assert_close, rounded, rounding
from tests.gpu.kernels.structs_rotary import RotaryParams, RotateParams

Array = npt.NDArray[Any]
STORED = [(dtype, storage) for dtype in DTYPES for storage in (dtype, "int8")]


@dataclass(frozen=True)
class Shape:
    """rows: tokens before the new ones and new tokens, of each sequence."""

    heads: int
    kv_heads: int
    dim: int
    rows: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        return sum(tokens for _, tokens in self.rows)


# Lanes of a group with and without some to spare; one head to a group, and four, the last group with fewer.
SMALL = [
    Shape(12, 2, 128, ((0, 1), (7, 1), (3, 2))),
    Shape(3, 1, 80, ((2, 3), (0, 0), (5, 1))),
    Shape(2, 1, 16, ((1, 5),)),
    Shape(1, 1, 256, ((4, 2),)),
    Shape(7, 1, 128, ((0, 1), (1, 0), (2, 170), (0, 2))),
]
LARGE = [Shape(*heads, 128, ((5, tokens),)) for heads in ((12, 2), (28, 4), (64, 8)) for tokens in (1, 4096)]
LARGE += [Shape(28, 4, 128, tuple((97 * i, 1) for i in range(64)))]


def _turned(x: Array, cos: Array, sin: Array, r: Any) -> Array:
    """x [rows, heads, dim], with `r` after every step."""
    first, second = np.split(x, 2, axis=-1)
    c, s = cos[:, None].astype(x.dtype), sin[:, None].astype(x.dtype)
    return np.concatenate([r(r(first * c) - r(second * s)), r(r(second * c) + r(first * s))], axis=-1)


def _tables(rng: np.random.Generator, rows: int, dim: int) -> tuple[Array, Array]:
    angles = rng.uniform(-100, 100, size=(rows, dim // 2))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@dataclass
class Case:
    shape: Shape
    dtype: str
    storage: str
    x: dict[str, Array]  # q, k and v, [rows, heads, dim]
    biases: dict[str, Array]  # of some of them, [heads, dim]
    cos: Array
    sin: Array
    caches: list[Cache]
    buffers: dict[str, Any] = field(default_factory=dict)

    def expected(self, name: str, r: Any, wide: type) -> Array:
        x = self.x[name].astype(wide)
        if name in self.biases:
            x = r(x + self.biases[name].astype(wide))
        return x if name == "v" else _turned(x, self.cos, self.sin, r)


def _case(device: Device, shape: Shape, dtype: str, storage: str, biased: tuple[str, ...] = ("q", "k", "v")) -> Case:
    rng = np.random.default_rng(shape.dim + shape.count)
    heads = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
    x = {name: rounded(rng.normal(size=(shape.count, n, shape.dim)), dtype) for name, n in heads.items()}
    biases = {name: rounded(3 * rng.normal(size=(heads[name], shape.dim)), dtype) for name in biased}
    capacity = 2 + max(start + tokens for start, tokens in shape.rows)
    caches = [empty_cache(device, storage, (capacity, shape.kv_heads, shape.dim)) for _ in shape.rows]
    return Case(shape, dtype, storage, x, biases, *_tables(rng, shape.count, shape.dim), caches)


def _params(device: Device, case: Case, *, apart: bool = False, **changed: Any) -> RotaryParams:
    """q, k and v side by side in rows, or each in memory of its own and q_out in the place of q."""
    shape, kept = case.shape, case.buffers
    flat = {name: x.reshape(shape.count, -1) for name, x in case.x.items()}
    given: dict[str, Any] = {}
    if apart:
        for name, x in flat.items():
            kept[name] = device.floats(x, case.dtype)
            given |= {name: kept[name].pointer, f"{name}_stride": x.shape[1]}
        kept["q_out"] = kept["q"]
    else:
        whole = np.concatenate([flat["q"], flat["k"], flat["v"]], axis=1)
        kept["qkv"], at, size = device.floats(whole, case.dtype), 0, 4 if case.dtype == "float32" else 2
        for name, x in flat.items():
            given |= {name: kept["qkv"].pointer + at * size, f"{name}_stride": whole.shape[1]}
            at += x.shape[1]
        kept["q_out"] = device.empty(case.x["q"].shape, case.dtype)
    for name, bias in case.biases.items():
        kept[f"{name}_bias"] = device.floats(bias, case.dtype)
    kept["cos"], kept["sin"] = device.put(case.cos), device.put(case.sin)
    kept["starts"] = device.put(np.array([start for start, _ in shape.rows], dtype=np.int32))
    kept["sequences"] = sequences_of(case.caches, [tokens for _, tokens in shape.rows])
    given |= {name: kept[name].pointer for name in ("q_out", "cos", "sin", "starts")}
    given |= {f"{name}_bias": kept[f"{name}_bias"].pointer for name in case.biases}
    given |= {"sequences": ctypes.addressof(kept["sequences"]), "count": len(shape.rows)}
    given |= {"heads": shape.heads, "kv_heads": shape.kv_heads, "dim": shape.dim}
    codes = {"dtype": CODES[case.dtype], "storage": CODES[case.storage]}
    return RotaryParams(**(codes | given | changed))


def _check_cache(case: Case, name: str) -> None:
    """What was stored, and that nothing beside it was."""
    truth, naive = case.expected(name, lambda x: x, np.float64), case.expected(name, rounding(case.dtype), np.float32)
    row = 0
    for (start, tokens), cache in zip(case.shape.rows, case.caches, strict=True):
        stored, scales = getattr(cache, name).numpy(), getattr(cache, f"{name}_scale")
        new = slice(start, start + tokens)
        others = np.delete(stored, new, axis=0)
        assert (others == np.int8(-91)).all() if case.storage == "int8" else np.isnan(others).all()
        part = truth[row : row + tokens]
        if scales is None:
            assert_close(stored[new], part, naive[row : row + tokens], case.dtype)
        else:
            scale = scales.numpy()
            assert np.isnan(np.delete(scale, new, axis=0)).all()
            assert np.allclose(scale[new], np.abs(part).max(axis=-1) / 127, rtol=1e-6, atol=0)
            error = np.abs(stored[new] * scale[new][..., None].astype(np.float64) - part)
            assert (error <= scale[new][..., None] * 0.50001).all()
        row += tokens


def _check(case: Case) -> None:
    q = case.buffers["q_out"].numpy().reshape(case.x["q"].shape)
    r = rounding(case.dtype)
    assert_close(q, case.expected("q", lambda x: x, np.float64), case.expected("q", r, np.float32), case.dtype)
    _check_cache(case, "k")
    _check_cache(case, "v")


@pytest.mark.parametrize(("dtype", "storage"), STORED)
def test_turns_and_stores(device: Device, dtype: str, storage: str) -> None:
    for shape in [*SMALL, *LARGE] if device.real else SMALL:
        case = _case(device, shape, dtype, storage)
        device.call("rotary_store", _params(device, case))
        _check(case)


@pytest.mark.parametrize("biased", [(), ("q",), ("v",)], ids=str)
@pytest.mark.parametrize("tokens", [2, 170])
def test_in_the_place_of_q_and_with_some_biases(device: Device, biased: tuple[str, ...], tokens: int) -> None:
    case = _case(device, Shape(6, 1, 128, ((3, tokens),)), "bfloat16", "bfloat16", biased)
    device.call("rotary_store", _params(device, case, apart=True))
    _check(case)


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_more_sequences_than_a_launch_takes(device: Device, storage: str) -> None:
    case = _case(device, Shape(2, 1, 16, tuple((i % 5, i % 3) for i in range(131))), "bfloat16", storage)
    device.call("rotary_store", _params(device, case))
    _check(case)


def test_codes_of_whole_and_half_numbers(device: Device) -> None:
    """Halves go to the even neighbour, and a head of zeros has the scale 0."""
    shape = Shape(1, 2, 16, ((0, 1),))
    case = _case(device, shape, "float32", "int8", ())
    case.x["v"][0, 0, :] = [127, -127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 125.5, 0.25, 0.75, -0.75, 63.5, 64.5, 0]
    case.x["v"][0, 1, :] = 0
    device.call("rotary_store", _params(device, case))
    codes = [127, -127, 0, 2, 2, 0, -2, -2, 126, 126, 0, 1, -1, 64, 64, 0]
    assert case.caches[0].v.numpy()[0].tolist() == [codes, [0] * 16]
    assert case.caches[0].v_scale.numpy()[0].tolist() == [1.0, 0.0]


def test_tokens_go_where_device_memory_says(device: Device) -> None:
    """So that a graph can be replayed at every step of decoding."""
    case = _case(device, Shape(2, 1, 32, ((0, 1), (4, 1))), "bfloat16", "bfloat16")
    params = _params(device, case)
    starts = device.put(np.array([5, 0], dtype=np.int32))
    params.starts = starts.pointer
    device.call("rotary_store", params)
    moved = Shape(2, 1, 32, ((5, 1), (0, 1)))
    _check(Case(moved, "bfloat16", "bfloat16", case.x, case.biases, case.cos, case.sin, case.caches, case.buffers))


@pytest.mark.parametrize(
    "changed",
    [
        {"dim": 24},
        {"dim": 272},
        {"storage": CODES["float32"]},
        {"dtype": CODES["int8"], "storage": CODES["int8"]},
        {"q_stride": 100},
    ],
    ids=str,
)
def test_what_has_no_body_is_refused(device: Device, changed: dict[str, int]) -> None:
    case = _case(device, Shape(2, 1, 32, ((0, 1),)), "bfloat16", "bfloat16")
    assert device.status("rotary_store", _params(device, case, **changed)) == "unsupported"


# rows, heads, dim, elements between rows beyond their own: halves of 16 bytes and of 8, and rows 8 bytes off.
TURNED = [(5, 3, 80, 80), (2, 2, 72, 0), (1, 1, 8, 0), (3, 2, 64, 4), (2, 1, 256, 0), (170, 7, 80, 560)]
TURNED_LARGE = [(4096, 32, 80, 1280), (16384, 32, 80, 1280)]


@pytest.mark.parametrize("op", ["rotate", "rotate_grad"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rotates_in_place(device: Device, dtype: str, op: str) -> None:
    sign = np.float32(-1 if op == "rotate_grad" else 1)
    for rows, heads, dim, more in [*TURNED, *TURNED_LARGE] if device.real else TURNED:
        rng = np.random.default_rng(rows)
        x = rounded(rng.normal(size=(rows, heads * dim + more)), dtype)
        cos, sin = _tables(rng, rows, dim)
        buffer, tables = device.floats(x, dtype), [device.put(cos), device.put(sin)]
        sizes = {"rows": rows, "heads": heads, "dim": dim, "stride": x.shape[1]}
        pointers = {"x": buffer.pointer, "cos": tables[0].pointer, "sin": tables[1].pointer}
        device.call(op, RotateParams(dtype=CODES[dtype], **pointers, **sizes))
        out = buffer.numpy()
        given = x[:, : heads * dim].reshape(rows, heads, dim)
        truth = _turned(given.astype(np.float64), cos, sign * sin, lambda a: a)
        assert_close(
            out[:, : heads * dim].reshape(given.shape), truth, _turned(given, cos, sign * sin, rounding(dtype)), dtype
        )
        assert np.array_equal(out[:, heads * dim :], x[:, heads * dim :])


@pytest.mark.parametrize("changed", [{"dim": 12}, {"dim": 264}, {"stride": 35}, {"dtype": CODES["int8"]}], ids=str)
def test_rotations_without_a_body_are_refused(device: Device, changed: dict[str, int]) -> None:
    x, table = device.floats(np.ones((1, 512)), "bfloat16"), device.put(np.ones((1, 256), dtype=np.float32))
    given = {"x": x.pointer, "cos": table.pointer, "sin": table.pointer, "rows": 1, "heads": 1, "dim": 32, "stride": 32}
    assert device.status("rotate", RotateParams(**({"dtype": CODES["bfloat16"]} | given | changed))) == "unsupported"
