"""Conversations to train on, and how five steps of training are taken. No framework here.

What PyTorch makes of each lies beside this file as `training-<name>.npz`, and the five steps as `training-adamw.npz`;
README.md says what the arrays are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from tests.golden.cases import Case, image, user, video

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"  # only where it is not the embedding
LANGUAGE = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.layers.1.self_attn.k_proj.bias",
    "model.norm.weight",
)
VISION = ("visual.merger.mlp.2.weight", "visual.blocks.0.attn.qkv.weight", "visual.patch_embed.proj.weight")
_STRIDE = 5


def reply(text: str) -> dict[str, Any]:
    """An assistant's turn. Without white space in front, so that its tokens are the same by themselves and in a row."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


TRAINING_CASES: tuple[Case, ...] = (
    Case("picture", [user(image("70x98.png"), "What colour is it?"), reply("It is mostly blue.")]),
    Case(
        "two-pictures",
        [user("Compare ", image("grey.png"), " and ", image("70x98.png"), "."), reply("The first one is grey.")],
    ),
    Case(
        "turns",
        [
            {"role": "system", "content": "Answer in one sentence."},
            user(image("palette.png"), "What is in the picture?"),
            reply("There are some shapes in it."),
            user("And here?", image("5x3.png")),
            reply("请看,这张图片很小。\n"),
            user("Is it the same?"),
            reply("No."),
        ],
    ),
    Case(
        # Every patch of this clip is PyTorch's to the bit, so that what differs after five steps is down to the steps.
        # Of `clip.mp4` three numbers come out of resizing one grey level off.
        "clip",
        [
            user(video("short.mp4", nframes=4, min_pixels=3_136, max_pixels=20_000), "What happens?"),
            reply("(1) A ball moves."),
        ],
    ),
    Case("text", [user("How many people are there?"), reply("Two people: one sits, the other one stands.")]),
    Case("untied", [user(image("70x98.png"), "What is it?"), reply("A picture of a star.")], ("untied",)),
)


@dataclass(frozen=True)
class Recipe:
    """Five steps of AdamW on the language model, its embeddings included; the vision tower is frozen.

    Every step takes the whole batch: the losses of its supervised tokens added up, over their number.
    """

    cases: tuple[str, ...] = ("turns", "clip", "text")
    checkpoint: str = "tiny"
    steps: int = 5
    warmup_steps: int = 2
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0


RECIPE = Recipe()


def is_trained(name: str) -> bool:
    return not name.startswith("visual.")


def is_decayed(name: str, ndim: int) -> bool:
    """Matrices are, the output head among them; embeddings (so a tied head too), norms and biases are not."""
    return ndim >= 2 and name != EMBEDDING and "norm" not in name and not name.endswith(".bias")


def sample(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What is kept of a parameter in the Hugging Face layout: every fifth row and column, of a vector all.

    Further axes count as columns.
    """
    return values if values.ndim == 1 else values.reshape(len(values), -1)[::_STRIDE, ::_STRIDE]
