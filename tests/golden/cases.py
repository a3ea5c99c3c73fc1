"""The golden cases: conversations in the form users write, and the checkpoint each is run on. No framework here.

Media are named by file; `tests/golden/media` has them. What the reference model makes of each case lies beside this
file as `<name>.npz`; README.md says how it was made and what the arrays are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qvl.hub.random_checkpoint import TINY, ConfigForm, Dtype, Layout, write_checkpoint
from qvl.model.config import ModelConfig

NEW_TOKENS = 24


@dataclass(frozen=True)
class Variant:
    """A checkpoint: which weights (config and seed) and in which form they are stored."""

    config: ModelConfig = TINY
    seed: int = 0
    dtype: Dtype = "float32"
    layout: Layout = "hf"
    config_form: ConfigForm = "flat"
    shard_bytes: int | None = None

    def write(self, folder: Path) -> None:
        write_checkpoint(
            folder,
            self.config,
            seed=self.seed,
            dtype=self.dtype,
            layout=self.layout,
            config_form=self.config_form,
            shard_bytes=self.shard_bytes,
        )

    def for_reference(self) -> Variant:
        """The same weights as transformers 4 can read them: one file, Hugging Face layout, flat config."""
        return replace(self, layout="hf", config_form="flat", shard_bytes=None)


UNTIED = replace(TINY, tie_word_embeddings=False)
VARIANTS: dict[str, Variant] = {
    "tiny": Variant(),
    "untied": Variant(UNTIED),
    "nested": Variant(config_form="nested"),
    "bfloat16": Variant(dtype="bfloat16"),
    "float16": Variant(dtype="float16"),
    "paddle": Variant(layout="paddle"),
    "paddle-untied": Variant(UNTIED, layout="paddle"),
    "sharded": Variant(shard_bytes=300_000),
    "paddle-sharded": Variant(layout="paddle", shard_bytes=300_000),
}


@dataclass(frozen=True)
class Case:
    """One conversation. The answer is the same on every checkpoint of `checkpoints`; the first made the reference."""

    name: str
    messages: list[dict[str, Any]]
    checkpoints: tuple[str, ...] = ("tiny",)
    add_vision_id: bool = False


def user(*parts: str | dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def image(file: str, **options: int) -> dict[str, Any]:
    return {"type": "image", "image": file, **options}


def video(file: str | list[str], **options: float) -> dict[str, Any]:
    return {"type": "video", "video": file, **options}


FRAMES = [f"frame-{number}.png" for number in range(5)]
SAME_WEIGHTS = ("tiny", "nested", "paddle", "sharded", "paddle-sharded")
DESCRIBE = "Describe this picture."

CASES: tuple[Case, ...] = (
    Case("text", [user("How many people are there?")], SAME_WEIGHTS),
    Case("text-chinese", [user("请描述这张图片。"), {"role": "assistant", "content": "好的。"}, user("图中有几个人?")]),
    Case("image", [user(image("70x98.png"), "What colour is it?")], SAME_WEIGHTS),
    Case("image-tall", [user(image("tall.png"), "Read the text.")]),
    Case("image-wide", [user(image("wide.png"), "What do you see?")]),
    Case("image-tiny", [user(image("5x3.png"), DESCRIBE)]),
    Case("image-grey", [user(image("grey.png"), "What is in the picture?")]),
    Case("image-palette", [user(image("palette.png"), "What is in the picture?")]),
    Case("image-shrunk", [user(image("large.png", max_pixels=40_000), DESCRIBE)]),
    Case("image-enlarged", [user(image("grey.png", min_pixels=60_000), "Where is the circle?")]),
    Case("image-resized", [user(image("large.png", resized_height=90, resized_width=200), DESCRIBE)]),
    Case("images-two", [user(image("70x98.png"), image("grey.png"), DESCRIBE)]),
    Case("interleaved", [user("First: ", image("grey.png"), "and then ", "this: ", image("tall.png"), "Which?")]),
    Case("vision-ids", [user(image("grey.png"), image("5x3.png"), "Compare the two pictures.")], add_vision_id=True),
    Case("system", [{"role": "system", "content": "Answer in one word."}, user(image("palette.png"), "What is this?")]),
    Case(
        "turns",
        [
            user("Is there a dog in this picture?"),
            {"role": "assistant", "content": "I cannot see any picture yet."},
            user(image("wide.png"), "Here it is."),
            {"role": "assistant", "content": [{"type": "text", "text": "There is a star at the top."}]},
            user("Is it the same?"),
        ],
    ),
    Case("video", [user(video("clip.mp4"), "What happens in the video?")]),
    Case("video-fps", [user(video("clip.mp4", fps=4.0, max_pixels=25_088), "What happens?")]),
    Case("video-nframes", [user(video("clip.mp4", nframes=7, max_pixels=20_000), "What happens?")]),
    Case("video-span", [user(video("clip.mp4", video_start=0.5, video_end=1.5, max_pixels=30_000), "What happens?")]),
    Case("video-frames", [user(video(FRAMES), "What moves?")]),
    Case(
        "video-total", [user(video("clip.mp4", total_pixels=60_000, min_pixels=3_136, fps=3.0), "Describe the clip.")]
    ),
    Case("video-short", [user(video("short.mp4", max_pixels=50_176), "Where does it go?")]),
    Case(
        "image-and-video",
        [user(image("grey.png"), "The picture, then the clip: ", video("clip.mp4", max_pixels=25_088), "Which?")],
        add_vision_id=True,
    ),
    Case("untied", [user(image("wide.png"), DESCRIBE)], ("untied", "paddle-untied")),
    Case("bfloat16", [user(image("70x98.png"), DESCRIBE)], ("bfloat16",)),
    Case("float16", [user(image("70x98.png"), "What is it?")], ("float16",)),
)
