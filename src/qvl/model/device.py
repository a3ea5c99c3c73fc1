"""Which device and dtype a run uses. An explicit wish is met or refused; only "auto" chooses."""

from __future__ import annotations

import os
from dataclasses import dataclass

import paddle

from qvl.errors import DeviceError, UsageError
from qvl.ops import AttentionImpl, status


@dataclass(frozen=True)
class Placement:
    """device: as Paddle names it, "cpu" or "gpu:0". dtype: of weights, cache and arithmetic."""

    device: str
    dtype: str
    attention: AttentionImpl


def place(device: str, dtype: str) -> Placement:
    """Choose, make it Paddle's current device, and say which attention body it runs.

    Raises DeviceError, also when native ops are asked for that cannot be had, and UsageError for another `QVL_OPS`.
    """
    status.check()
    chosen = choose(device, dtype)
    status.check(chosen.device)
    return chosen


def choose(device: str, dtype: str) -> Placement:
    """`place` whatever ops are asked for."""
    gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if device == "auto":
        device = "gpu" if gpus else "cpu"
    if device.startswith("gpu"):
        _check_gpu(device, gpus)
        device = device if ":" in device else "gpu:0"
    on_gpu = device.startswith("gpu")
    if dtype == "auto":
        dtype = "bfloat16" if on_gpu else "float32"
    if not on_gpu and dtype != "float32":
        raise DeviceError(f"Paddle computes in float32 only on a CPU; --dtype {dtype} needs a GPU")
    if on_gpu and dtype == "bfloat16" and not paddle.amp.is_bfloat16_supported(device):
        raise DeviceError(f"{device} has no bfloat16; use --dtype float16 or float32")
    paddle.set_device(device)
    return Placement(device, dtype, "flash" if on_gpu and dtype != "float32" and _has_flash(device) else "composed")


def _has_flash(device: str) -> bool:
    """FlashAttention 2 runs on Ampere (8.0) and later."""
    major, _ = paddle.device.cuda.get_device_capability(int(device.partition(":")[2]))
    return bool(major >= 8)


def _check_gpu(device: str, gpus: int) -> None:
    if not paddle.device.is_compiled_with_cuda():
        raise DeviceError(
            f"--device {device}: this is Paddle's CPU build; install paddlepaddle-gpu in its place (see README)"
        )
    index = int(device.partition(":")[2] or 0)
    if index >= gpus:
        raise DeviceError(f"--device {device}: {gpus} GPU{'' if gpus == 1 else 's'} found here")


def own_device(device: str) -> str:
    """The device for this process of several: where they are asked for "gpu" each has one that the launcher chose.

    Raises UsageError for one GPU that several processes of this machine would share.
    """
    here = os.environ.get("PADDLE_LOCAL_SIZE", "1")
    if ":" in device and here != "1":
        raise UsageError(f"--device {device} is one GPU for {here} processes; leave it out, and each has its own")
    if paddle.distributed.get_world_size() == 1 or ":" in device or device == "cpu":
        return device
    if not paddle.device.is_compiled_with_cuda() or not paddle.device.cuda.device_count():
        return device
    return f"gpu:{paddle.distributed.ParallelEnv().device_id}"
