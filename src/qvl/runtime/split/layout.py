"""On which devices the parts of a model lie."""

from __future__ import annotations

from collections.abc import Sequence

import paddle

from qvl.errors import DeviceError, UsageError
from qvl.model.config import ModelConfig
from qvl.model.device import Placement
from qvl.model.part import Part
from qvl.model.quantization import Quantization
from qvl.profile import Profile


def chosen_device(profile: Profile) -> str:
    """The device that the first part is on: the first of `devices`, where a profile names some.

    Raises UsageError where `device` is another.
    """
    if profile.devices is None:
        return profile.device
    if profile.device == "cpu":
        raise UsageError(f"--devices {profile.devices} names GPUs and --device cpu none; leave out one of them")
    first = f"gpu:{_numbers(profile)[0]}"
    if ":" in profile.device and profile.device != first:
        raise UsageError(
            f"--devices {profile.devices} begins with {first}, and --device is {profile.device}; leave out one of them"
        )
    return first


def split_devices(profile: Profile, placement: Placement) -> tuple[str, ...]:
    """A device for each part, as Paddle names them; none where the model is whole.

    On a CPU the parts are processes that share its cores. Raises UsageError where `devices` and `tensor_parallel` do
    not agree, and DeviceError for GPUs that are not there.
    """
    size = profile.tensor_parallel
    if profile.devices is not None:
        numbers = _numbers(profile)
        if size not in (1, len(numbers)):
            raise UsageError(
                f"devices {profile.devices} and tensor_parallel={size} do not agree; leave out one of them"
            )
        size = len(numbers)
    elif placement.device == "cpu":
        return ("cpu",) * size if size > 1 else ()
    else:
        first = int(placement.device.partition(":")[2] or 0)
        numbers = list(range(first, first + size))
    if size == 1:
        return ()
    count = paddle.device.cuda.device_count()
    missing = [number for number in numbers if number >= count]
    if missing:
        raise DeviceError(f"Paddle sees {count} GPUs here, none with the number {missing[0]} of {size} to split over")
    return tuple(f"gpu:{number}" for number in numbers)


def check_split(config: ModelConfig, devices: Sequence[str], quantization: Quantization | None) -> None:
    """Raise UsageError for what cannot be split."""
    if not devices:
        return
    Part(0, len(devices)).check(config)
    if quantization is not None:
        raise UsageError("quantised weights stay on one device; leave out --quant or split nothing")


def _numbers(profile: Profile) -> list[int]:
    numbers = [int(text) for text in str(profile.devices).split(",")]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"devices {profile.devices} has one of them twice")
    return numbers
