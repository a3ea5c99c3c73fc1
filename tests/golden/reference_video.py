"""qwen-vl-utils 0.0.8 without torchvision, of which it needs one function, and with cutting clips by time.

Imported by make_reference only.
"""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch


def load_process_vision_info() -> Any:
    """`process_vision_info` of qwen-vl-utils. Call after importing transformers, which looks for torchvision itself."""
    _stand_in_for_torchvision()
    from qwen_vl_utils import vision_process

    def read(part: dict[str, Any]) -> torch.Tensor:
        return read_clip(part, vision_process.smart_nframes)

    vision_process.VIDEO_READER_BACKENDS["decord"] = read
    return vision_process.process_vision_info


def read_clip(part: dict[str, Any], smart_nframes: Any) -> torch.Tensor:
    """uint8 [frames, 3, H, W]. 0.0.8 cannot cut a clip with decord; the span is taken as 0.0.11 takes it:
    from the first frame not before `video_start` to the last not after `video_end`.
    """
    import decord

    reader = decord.VideoReader(part["video"])
    count, fps = len(reader), reader.get_avg_fps()
    first, last = 0, count - 1
    if "video_start" in part:
        first = math.ceil(min(max(part["video_start"], 0.0), count / fps) * fps)
    if "video_end" in part:
        last = min(math.floor(min(max(part["video_end"], 0.0), count / fps) * fps), count - 1)
    nframes = smart_nframes(part, total_frames=last - first + 1, video_fps=fps)
    indices = torch.linspace(first, last, nframes).round().long().tolist()
    return torch.from_numpy(np.ascontiguousarray(reader.get_batch(indices).asnumpy())).permute(0, 3, 1, 2)


def _resize(video: torch.Tensor, size: list[int], interpolation: str, antialias: bool) -> torch.Tensor:
    """torchvision.transforms.functional.resize for uint8 tensors: through float32, rounded and clamped."""
    if list(video.shape[-2:]) == list(size):
        return video
    out = torch.nn.functional.interpolate(
        video.to(torch.float32), size=size, mode=interpolation, align_corners=False, antialias=antialias
    )
    return out.clamp(min=0, max=255).round().to(torch.uint8)


def _stand_in_for_torchvision() -> None:
    package = ModuleType("torchvision")
    io, transforms = ModuleType("torchvision.io"), ModuleType("torchvision.transforms")
    functional = ModuleType("torchvision.transforms.functional")
    functional.resize = _resize  # type: ignore[attr-defined]
    transforms.functional = functional  # type: ignore[attr-defined]
    transforms.InterpolationMode = type("InterpolationMode", (), {"BICUBIC": "bicubic"})  # type: ignore[attr-defined]
    package.io, package.transforms = io, transforms  # type: ignore[attr-defined]
    package.__version__ = "0.0"  # type: ignore[attr-defined]
    for module in (package, io, transforms, functional):
        sys.modules[module.__name__] = module
