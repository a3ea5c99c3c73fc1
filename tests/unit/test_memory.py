"""What a run is said to take, against what it takes, and what is said to be free."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from qvl.hub.random_checkpoint import TINY
from qvl.processing.prompt import Prompt, Vision
from qvl.runtime import memory

# Grows by what one stage takes, in a process of its own: the peak of this one is long past.
MEASURE = """
import json, sys
from pathlib import Path
from qvl import environment
environment.prepare()
import numpy as np, paddle
from dataclasses import replace
from qvl.hub.random_checkpoint import TINY
from qvl.model.config import VisionConfig
from qvl.model.qwen2_vl import Qwen2VL
from qvl.processing.prompt import Prompt, Vision
from qvl.runtime import memory
from qvl.runtime.cache import KVCache
from qvl.runtime.decode import encode_vision, prompt_inputs

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

def reset():
    Path("/proc/self/clear_refs").write_text("5")
    return peak()

stage = sys.argv[1]
paddle.seed(0)
vision = VisionConfig(depth=2, embed_dim=320, hidden_size=512, num_heads=4)
config = replace(TINY, hidden_size=512, num_attention_heads=8, num_key_value_heads=2, intermediate_size=2048,
                 num_hidden_layers=2, mrope_section=(8, 12, 12), vision_config=vision)
model = Qwen2VL(config)
model.eval()
side = 64
patches = np.zeros((side * side, vision.patch_dim), np.float32) + np.float32(0.1)
ids = np.zeros(4096, np.int64) + 5
positions = np.tile(np.arange(len(ids), dtype=np.int64), (3, 1))
small = Prompt(ids[:64], positions[:, :64], 64, (Vision("image", patches[:256], (1, 16, 16), (1, 1)),))
large = Prompt(ids, positions, len(ids), (Vision("image", patches, (1, side, side), (1, 1)),))

def run(prompt):
    with paddle.no_grad():
        if stage == "vision":
            encode_vision(model, prompt)
        else:
            cache = KVCache(config, len(prompt), "float32")
            model(prompt_inputs(config, prompt, None), [cache]).numpy()

run(small)  # threads and libraries have their own memory by now
before = reset()
run(large)
need = memory.need(config, large, 0, "float32", 0)
estimate = need.vision if stage == "vision" else need.prefill + need.cache
print(json.dumps({"estimate": estimate, "measured": peak() - before}))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("stage", ["vision", "prefill"])
def test_a_run_takes_no_more_memory_than_was_said(stage: str) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, stage], capture_output=True, text=True, timeout=300)
    if "clear_refs" in done.stderr:
        pytest.skip("the peak of a process cannot be reset here")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["measured"] > 10_000_000
    assert figures["measured"] <= figures["estimate"] <= 3 * figures["measured"], figures


def test_sixteen_bits_save_less_than_half_of_a_large_picture() -> None:
    patches = np.zeros((4096, TINY.vision_config.patch_dim), np.float32)
    ids = np.zeros(8, np.int64)
    prompt = Prompt(ids, np.zeros((3, 8), np.int64), 8, (Vision("image", patches, (1, 64, 64), (1, 1)),))
    wide, short = (memory.need(TINY, prompt, 0, dtype, 0) for dtype in ("float32", "bfloat16"))
    rotary = 6 * 4 * 2 * TINY.vision_config.embed_dim * 4096
    assert wide.vision > short.vision > rotary + patches.nbytes
    assert memory.need(TINY, replace(prompt, visions=()), 0, "float32", 0).vision == 0


def test_a_long_clip_takes_the_memory_of_one_group_and_its_features() -> None:
    ids = np.zeros(8, np.int64)

    def vision(slices: int) -> int:
        patches = np.broadcast_to(np.float32(0), (slices * 4096, TINY.vision_config.patch_dim))
        clip = Vision("video", patches, (slices, 64, 64), (1, 1))
        return memory.need(TINY, Prompt(ids, np.zeros((3, 8), np.int64), 8, (clip,)), 0, "float32", 0).vision

    per_slice = 2 * 1024 * TINY.hidden_size * 4
    assert vision(100) - vision(50) == 50 * per_slice
    assert vision(2) - vision(1) > 10 * per_slice
