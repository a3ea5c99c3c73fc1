"""The shapes of the published checkpoints, known without a download, and that of the tiny model behind `demo`."""

from __future__ import annotations

from qvl.model.config import ModelConfig, VisionConfig

# Enough of everything to go wrong in: grouped heads, three rotary sections of two sizes, more than one vision block.
TINY = ModelConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=128,
    vocab_size=1024,
    tie_word_embeddings=True,
    rms_norm_eps=1e-6,
    mrope_section=(2, 3, 3),
    image_token_id=1010,
    video_token_id=1011,
    vision_start_token_id=1007,
    vision_end_token_id=1008,
    bos_token_id=998,
    eos_token_id=1000,
    torch_dtype="float32",
    vision_config=VisionConfig(depth=2, embed_dim=48, hidden_size=64, num_heads=4),
)
FULL_2B = ModelConfig(
    hidden_size=1536,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    intermediate_size=8960,
    vocab_size=151936,
    tie_word_embeddings=True,
    rms_norm_eps=1e-6,
    vision_config=VisionConfig(hidden_size=1536),
)
FULL_7B = ModelConfig(
    hidden_size=3584,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    intermediate_size=18944,
    vocab_size=152064,
    tie_word_embeddings=False,
    rms_norm_eps=1e-6,
    vision_config=VisionConfig(hidden_size=3584),
)
FULL_72B = ModelConfig(
    hidden_size=8192,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    intermediate_size=29568,
    vocab_size=152064,
    tie_word_embeddings=False,
    rms_norm_eps=1e-6,
    vision_config=VisionConfig(hidden_size=8192),
)
_PUBLISHED = {"2B": FULL_2B, "7B": FULL_7B, "72B": FULL_72B}


def published_config(model: str) -> ModelConfig | None:
    """The shape of a checkpoint of the Qwen organisation by its hub id, base or Instruct; None for any other name."""
    size = model.removeprefix("Qwen/Qwen2-VL-").removesuffix("-Instruct")
    return _PUBLISHED.get(size) if model.startswith("Qwen/Qwen2-VL-") else None
