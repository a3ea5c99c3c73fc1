"""Writes resize.npz: what torch makes of small random frames, for tests/unit/test_resize.py.

Run by hand where torch is installed: `python tests/golden/make_resize.py`. Last run with torch 2.13.0 on x86-64. The
call is the one that torchvision.transforms.functional.resize(BICUBIC, antialias=True) makes for a uint8 tensor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

# Source height and width, target height and width: up, down, both, hardly, extreme, odd ratios.
CASES = (
    (30, 40, 56, 84),
    (90, 70, 28, 28),
    (20, 90, 56, 28),
    (53, 57, 56, 56),
    (3, 100, 28, 84),
    (1, 1, 28, 28),
    (61, 37, 84, 28),
)

arrays: dict[str, np.ndarray] = {}
for case in CASES:
    height, width, *target = case
    frames = np.random.default_rng(sum(case)).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    resized = torch.nn.functional.interpolate(planes, size=target, mode="bicubic", antialias=True, align_corners=False)
    key = "_".join(map(str, case))
    arrays[f"in_{key}"] = frames
    arrays[f"out_{key}"] = resized.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
np.savez_compressed(Path(__file__).with_name("resize.npz"), **arrays)
