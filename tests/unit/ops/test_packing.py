"""Packed weights: what the formats hold, and that the native packer and the NumPy one agree on every byte of them."""

from __future__ import annotations

import numpy as np
import pytest

from qvl.ops import linear, native, packing
from qvl.ops.packing import PackedMatrix, Packing

ALL = [
    Packing("bf16"),
    Packing("int8"),
    *(Packing("int8", group) for group in packing.GROUPS),
    *(Packing("int4", group) for group in packing.GROUPS),
    *(Packing("int4", group, symmetric=False) for group in packing.GROUPS),
]
# Full panels; outputs and inputs that fill none of them; the vision tower's 1176 inputs; fewer than one panel.
SIZES = [(32, 128), (50, 100), (17, 1176), (3, 5)]

each_packing = pytest.mark.parametrize("how", ALL, ids=lambda how: f"{how.kind}-{how.group}-{how.symmetric}")
with native.using("auto") as _module:
    needs_native = pytest.mark.skipif(_module is None, reason="the native ops are not built")


def matrix(n: int, k: int, seed: int = 0) -> packing.Floats:
    """Weights as a layer has them: normal, with some outputs much larger and some inputs that stand out."""
    rng = np.random.default_rng([seed, n, k])
    x = rng.normal(scale=0.02, size=(n, k)) * np.exp(rng.normal(size=(n, 1)))
    x[:, :: max(1, k // 3)] *= 5
    return x.astype(np.float32)


def worst_step(how: Packing, x: packing.Floats) -> packing.Floats:
    """The most that rounding may move each number: half a step of its group, and the clipping of ends."""
    if how.kind == "bf16":
        return np.abs(x) * np.float32(2**-8)
    n, k = x.shape
    group = how.group or how.padded(k)
    padded = np.zeros((n, how.padded(k)), np.float32)
    padded[:, :k] = np.abs(x)
    top = padded.reshape(n, -1, group).max(axis=-1, keepdims=True)
    # int4 may give up accuracy at the ends of a group for its middle: at most 30 % of the range.
    share = {"int8": 0.51 / 127, "int4": 0.31}[how.kind]
    return np.broadcast_to(top * share, (n, padded.shape[1] // group, group)).reshape(n, -1)[:, :k]


@each_packing
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_unpacked_numbers_are_near_what_was_packed(how: Packing, n: int, k: int) -> None:
    x = matrix(n, k)
    packed = packing.pack(x, how)
    back = packing.unpack(packed)
    assert back.shape == x.shape
    assert (np.abs(back - x) <= worst_step(how, x) + 1e-12).all()
    assert packed.nbytes == sum(np.prod(s) * np.dtype(d).itemsize for s, d in how.shapes(n, k).values())
    # Rows from the middle are those rows.
    assert np.array_equal(packing.unpack(packed, n // 2, n), back[n // 2 :])


@pytest.mark.parametrize(
    ("how", "error"), [(Packing("int8"), 0.012), (Packing("int4", 32), 0.1), (Packing("int4", 128), 0.13)]
)
def test_error_of_a_width_is_what_it_should_be(how: Packing, error: float) -> None:
    x = np.random.default_rng(0).normal(size=(64, 1024)).astype(np.float32)
    assert np.sqrt(np.mean((packing.unpack(packing.pack(x, how)) - x) ** 2)) < error


@needs_native
@each_packing
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("level", ["portable", "avx2", "avx512"])
def test_the_native_packer_makes_the_same_bytes(how: Packing, n: int, k: int, level: str) -> None:
    x = matrix(n, k)
    expected = packing.pack(x, how)
    with native.using("native") as module:
        if level not in module.levels():
            pytest.skip(f"this CPU has no {level}")
    with native.using("native", level=level):
        found = linear.pack(x, how)
        assert np.array_equal(linear.unpack(found), packing.unpack(found))
    # Among the candidates of a group two may fit equally well to the last bit, and sums run in another order.
    differing = 0.0 if how.kind != "int4" else 0.01
    for name in how.shapes(n, k):
        assert np.mean(getattr(found, name) != getattr(expected, name)) <= differing, name
    if how.kind == "int4":
        errors = [np.mean((packing.unpack(each) - x) ** 2) for each in (found, expected)]
        assert errors[0] == pytest.approx(errors[1], rel=1e-3)


@pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=needs_native)])
@each_packing
def test_orientation_dtype_and_blocks_make_no_difference(how: Packing, mode: native.Mode) -> None:
    x = packing.from_bfloat16(packing.to_bfloat16(matrix(48, 96)))
    with native.using(mode):
        whole = linear.pack(x, how)
        turned = linear.pack(np.ascontiguousarray(x.T).T, how)  # as Paddle stores a layer
        halves = linear.pack(packing.to_bfloat16(x), how)
        blocks = [linear.pack(x[:32], how), linear.pack(x[32:], how)]
    for name in how.shapes(48, 96):
        expected = getattr(whole, name)
        assert np.array_equal(getattr(turned, name), expected)
        assert np.array_equal(getattr(halves, name), expected)
        assert np.array_equal(np.concatenate([getattr(block, name) for block in blocks]), expected)


@pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=needs_native)])
@each_packing
def test_zeros_stay_zeros_and_what_is_no_number_stays_none(how: Packing, mode: native.Mode) -> None:
    x = np.zeros((16, 128), np.float32)
    x[3, 40], x[5, 7], x[9, 100] = np.nan, np.inf, 1.0
    with native.using(mode):
        back = linear.unpack(linear.pack(x, how))
    assert not np.isfinite(back[3]).all() and not np.isfinite(back[5]).all()
    clean = np.delete(back, [3, 5, 9], axis=0)
    assert (clean == 0).all()
    assert back[9, 100] == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("mode", ["composed", pytest.param("native", marks=needs_native)])
def test_codes_of_another_quantiser_are_kept_as_they_are(mode: native.Mode) -> None:
    rng = np.random.default_rng(1)
    how = Packing("int4", 128, symmetric=False)
    codes = rng.integers(0, 16, size=(40, 300)).astype(np.uint8)
    scales = rng.uniform(0.001, 0.1, size=(40, 3)).astype(np.float16)
    zeros = rng.integers(0, 16, size=(40, 3)).astype(np.uint8)
    with native.using(mode):
        back = linear.unpack(packing.lay_out(codes, how, scales, zeros))
    group = np.arange(300) // 128
    expected = (codes.astype(np.float32) - zeros[:, group]) * scales[:, group].astype(np.float32)
    assert np.array_equal(back, expected)


@pytest.mark.parametrize(
    ("kind", "group", "symmetric"),
    [("bf16", 32, True), ("int4", 0, True), ("int8", 0, False), ("int3", 32, True), ("int4", 48, True)],
)
def test_a_packing_that_does_not_exist_is_refused(kind: packing.Kind, group: int, symmetric: bool) -> None:
    with pytest.raises(ValueError, match="packing: "):
        Packing(kind, group, symmetric)


def test_arrays_of_the_wrong_shape_are_refused_by_name() -> None:
    packed = packing.pack(matrix(16, 64), Packing("int8"))
    with pytest.raises(ValueError, match="packed matrix: scales is missing"):
        PackedMatrix(packed.packing, 16, 64, packed.data)
    with pytest.raises(
        ValueError, match=r"packed matrix: data is int8 \[1, 16, 16, 4\], int8 \[2, 16, 16, 4\] is needed"
    ):
        PackedMatrix(packed.packing, 32, 64, packed.data, np.zeros((2, 16), np.float32))
