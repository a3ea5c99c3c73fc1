"""The library under test, built when a source changed: emulated, or for the card of this machine.

QVL_GPU_TESTS=cuda asks for the card; anything else is emulated. QVL_GPU_TESTS_OPS=norm,activation leaves the other ops
out, for who works on one of them.
"""

from __future__ import annotations

import os
from pathlib import Path

from ext import build_cuda
from tests.gpu.kernels.devices import Device, EmulatedDevice, TorchDevice


def on_card() -> bool:
    return os.environ.get("QVL_GPU_TESTS") == "cuda"


def library() -> Path:
    """Raises CannotBuild, with what the compiler said."""
    ops = tuple(name for name in os.environ.get("QVL_GPU_TESTS_OPS", "").split(",") if name)
    folder = build_cuda.native.build_folder() / "-".join(["kernels", *ops])
    target = build_cuda.Target(folder, emulated=not on_card(), architectures=_of_card(), ops=ops, lines=on_card())
    build_cuda.build(target, say=False)
    return target.library


def open_device() -> Device:
    return TorchDevice(library()) if on_card() else EmulatedDevice(library())


def _of_card() -> tuple[str, ...]:
    if not on_card():
        return build_cuda.ARCHITECTURES
    import torch

    return ("sm_{}{}".format(*torch.cuda.get_device_capability()),)
