"""What runs kernels without a GPU: that it computes what a GPU does, and notices what a GPU would not forgive."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from ext import build_cuda
from tests.gpu.kernels.devices import Device, EmulatedDevice, KernelError
from tests.gpu.kernels.numerics import bfloat16_bits, from_bfloat16_bits, rounded

MISUSES = ["ended_early", "other_barrier", "half_a_warp", "other_collective", "some_lanes", "behind", "before", "askew"]
MISUSES += ["far", "deep"]


class ProbeParams(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b", "out")),
        *((name, ctypes.c_int32) for name in ("kind", "blocks", "threads", "shared")),
    ]


@pytest.fixture(scope="module")
def probe(device: Device) -> Device:
    """Skipped with the others where there is no compiler; emulated even where `device` is a card."""
    assert device.library.qvl_cuda_abi() == 1
    sources = (build_cuda.HERE / "cuda" / "library.cu", Path(__file__).with_name("probe.cu"))
    target = build_cuda.Target(build_cuda.native.build_folder() / "probe", emulated=True, sources=sources)
    build_cuda.build(target, say=False)
    return EmulatedDevice(target.library)


def test_a_block_sums_with_shuffles_and_barriers(probe: Device) -> None:
    x = np.arange(3 * 64, dtype=np.float32)
    a, out = probe.put(x), probe.empty(3, "float32")
    for _ in range(2):
        probe.call("probe_sum", ProbeParams(a=a.pointer, out=out.pointer, blocks=3))
        np.testing.assert_array_equal(out.numpy(), x.reshape(3, 64).sum(axis=1))


def test_shared_memory_begins_as_nan_in_every_block(probe: Device) -> None:
    out = probe.put(np.zeros(32, np.float32))
    probe.call("probe_poison", ProbeParams(out=out.pointer))
    assert np.isnan(out.numpy()).all()


def test_the_other_order_shows_a_race(probe: Device) -> None:
    out = probe.empty(64, "int32")
    probe.call("probe_race", ProbeParams(out=out.pointer))
    forward = out.numpy()
    with probe.other_order():
        probe.call("probe_race", ProbeParams(out=out.pointer))
    assert (forward != out.numpy()).any()


def test_a_copy_is_there_once_it_was_waited_for(probe: Device) -> None:
    x = np.arange(8, dtype=np.float32)
    a, out = probe.put(x), probe.empty((32, 2, 8), "float32")
    probe.call("probe_copy", ProbeParams(a=a.pointer, out=out.pointer))
    early, late = out.numpy()[:, 0], out.numpy()[:, 1]
    assert (early[:, :4] == x[:4]).all() and np.isnan(early[:, 4:]).all()
    assert (late[::2] == x).all() and (late[1::2] == np.where(x < 4, x, 0)).all()


def test_tiles_are_multiplied_in_the_layout_of_the_tensor_cores(probe: Device) -> None:
    rng = np.random.default_rng(0)
    a, b = rounded(rng.normal(size=(16, 16)), "bfloat16"), rounded(rng.normal(size=(16, 8)), "bfloat16")
    left, right = np.empty((32, 8), np.uint16), np.empty((32, 4), np.uint16)
    for lane in range(32):
        g, t = lane // 4, lane % 4
        near, far = [2 * t, 2 * t + 1], [2 * t + 8, 2 * t + 9]
        left[lane] = bfloat16_bits(np.concatenate([a[g, near], a[g + 8, near], a[g, far], a[g + 8, far]]))
        right[lane] = bfloat16_bits(b[near + far, g])
    out = probe.empty((32, 4), "float32")
    lanes = [probe.put(array.view(np.int32)) for array in (left, right)]
    probe.call("probe_multiply", ProbeParams(a=lanes[0].pointer, b=lanes[1].pointer, out=out.pointer))
    made = np.empty((16, 8))
    for lane, sums in enumerate(out.numpy()):
        g, t = lane // 4, lane % 4
        made[g, [2 * t, 2 * t + 1]], made[g + 8, [2 * t, 2 * t + 1]] = sums[:2], sums[2:]
    np.testing.assert_allclose(made, 2 * (a.astype(np.float64) @ b), atol=1e-5)


@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_noticed(probe: Device, name: str) -> None:
    kind, out = MISUSES.index(name), probe.empty(64, "float32")
    params = ProbeParams(out=out.pointer, kind=kind, blocks=1, threads=64, shared=256)
    with pytest.raises(KernelError) as raised:
        probe.call("probe_misuse", params)
    said = str(raised.value)
    expected = {
        "ended_early": "not all threads of a block come to a barrier",
        "other_barrier": "not all threads of a block come to a barrier",
        "half_a_warp": "not all lanes of a warp come to a collective",
        "other_collective": "lanes of a warp come to different collectives",
        "some_lanes": "with some lanes only",
        "askew": "an access of 16 bytes",
        "far": "thread (63, 0, 0): an access to 0x",
        "deep": "bytes of local variables",
    }
    assert expected.get(name, "outside of the 256 bytes of dynamic shared memory") in said
    # And the next launch is a launch like any other.
    test_a_block_sums_with_shuffles_and_barriers(probe)


@pytest.mark.parametrize(
    ("blocks", "threads", "shared"), [(1, 1025, 0), (1, 0, 0), (70000, 32, 0), (0, 32, 0), (1, 32, 228 * 1024)]
)
def test_launches_that_a_gpu_refuses_are_refused(probe: Device, blocks: int, threads: int, shared: int) -> None:
    out = probe.empty(64, "float32")
    params = ProbeParams(out=out.pointer, kind=4, blocks=blocks, threads=threads, shared=shared)
    with pytest.raises(KernelError, match=r"a block of|a grid of|bytes of shared memory"):
        probe.call("probe_misuse", params)


def test_a_partial_warp_has_no_collectives(probe: Device) -> None:
    out = probe.empty(64, "float32")
    with pytest.raises(KernelError, match="warp that has 8 threads"):
        probe.call("probe_misuse", ProbeParams(out=out.pointer, kind=2, blocks=1, threads=40))


def test_every_16_bit_number_is_widened_and_rounded_exactly(probe: Device) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    for kind, wide in ((0, from_bfloat16_bits(bits)), (1, bits.view(np.float16).astype(np.float32))):
        # The numbers themselves, their middles, and just beside those.
        with np.errstate(invalid="ignore", over="ignore"):
            middles = (wide[:-1].astype(np.float64) + wide[1:]).astype(np.float32) / np.float32(2)
            ties = (wide[:-1] * np.float32(0.5) + wide[1:] * np.float32(0.5)).astype(np.float32)
        near = [middles, ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
        floats = np.concatenate([wide, *near]).astype(np.float32)
        a, out = probe.put(bits.view(np.float16)), probe.empty(bits.shape, "float32")
        probe.call("probe_convert", ProbeParams(a=a.pointer, out=out.pointer, kind=kind, blocks=bits.size))
        np.testing.assert_array_equal(out.numpy(), wide)
        a, back = probe.put(floats), probe.empty(floats.shape, "uint32")
        probe.call("probe_convert", ProbeParams(a=a.pointer, out=back.pointer, kind=kind + 2, blocks=floats.size))
        made = back.numpy().view(np.uint16).reshape(-1)[: floats.size]
        with np.errstate(over="ignore"):
            expected = bfloat16_bits(floats) if kind == 0 else floats.astype(np.float16).view(np.uint16)
        number = ~np.isnan(floats)
        np.testing.assert_array_equal(made[number], expected[number])
        assert (made[~number] == 0x7FFF).all()
