"""The shapes that are timed: language models, the vision tower, and small ones for trying it all without a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A language model of the Qwen2-VL family."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    vocab: int
    layers: int
    tied: bool  # the head is the table of token vectors

    @property
    def q_width(self) -> int:
        return self.heads * self.dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.dim

    @property
    def qkv(self) -> tuple[int, int, int]:
        """Outputs of the projections to q, k and v."""
        return self.q_width, self.kv_width, self.kv_width

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of a layer's products, those that share an input together."""
        return {
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "qkv": (sum(self.qkv), self.hidden),
            "o": (self.hidden, self.q_width),
        }


@dataclass(frozen=True)
class Vision:
    hidden: int
    heads: int
    dim: int
    inner: int


@dataclass(frozen=True)
class Sizes:
    models: tuple[Model, ...]
    steps: tuple[Model, ...]  # those whose whole decode step is timed
    vision: Vision
    few: tuple[int, ...]  # rows of a decode step
    many: tuple[int, ...]  # rows of a prefill
    contexts: tuple[int, ...]
    step_context: int


QWEN_2B = Model("2B", 1536, 12, 2, 128, 8960, 151936, 28, tied=True)
QWEN_7B = Model("7B", 3584, 28, 4, 128, 18944, 152064, 28, tied=False)
QWEN_72B = Model("72B", 8192, 64, 8, 128, 29568, 152064, 80, tied=False)
REAL = Sizes(
    models=(QWEN_2B, QWEN_7B, QWEN_72B),
    steps=(QWEN_2B, QWEN_7B),
    vision=Vision(1280, 16, 80, 5120),
    few=(1, 8, 64),
    many=(1024, 4096),
    contexts=(1024, 8192, 32768),
    step_context=1024,
)
TINY_MODEL = Model("tiny", 64, 4, 2, 16, 128, 304, 2, tied=True)
TINY = Sizes((TINY_MODEL,), (TINY_MODEL,), Vision(32, 2, 16, 48), (1, 3), (17,), (20,), 20)
