"""The shapes of the published checkpoints, known without a download, and that of the tiny model behind `demo`."""

from __future__ import annotations

from dataclasses import replace

from qvl.model.config import ModelConfig, VisionConfig
from qvl.model.foreign import PUBLISHED_ENDS, published_foreign

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
    """The shape of a checkpoint of the Qwen organisation by its hub id, base, Instruct or quantised; None for any other
    name.
    """
    if not model.startswith("Qwen/Qwen2-VL-"):
        return None
    quantised = published_foreign(model) is not None
    end = next((end for end in PUBLISHED_ENDS if model.endswith(end)), "")
    size = model.removeprefix("Qwen/Qwen2-VL-").removesuffix(end).removesuffix("-Instruct")
    config = _PUBLISHED.get(size)
    # The quantised 72B is wider by zeros, so that groups of 128 can be shared out to eight GPUs.
    return replace(config, intermediate_size=29696) if quantised and config is FULL_72B else config


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of a checkpoint and its shape in the Hugging Face layout, where a linear is [out, in]."""
    return {**_vision_shapes(config.vision_config), **_language_shapes(config)}


def _vision_shapes(vision: VisionConfig) -> dict[str, tuple[int, ...]]:
    width, inner, patch = vision.embed_dim, vision.intermediate_size, vision.patch_size
    merged = width * vision.spatial_merge_size**2
    shapes: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (width, vision.in_channels, vision.temporal_patch_size, patch, patch)
    }
    for number in range(vision.depth):
        block = f"visual.blocks.{number}"
        shapes |= _with_bias(f"{block}.norm1", (width,))
        shapes |= _with_bias(f"{block}.norm2", (width,))
        shapes |= _with_bias(f"{block}.attn.qkv", (3 * width, width))
        shapes |= _with_bias(f"{block}.attn.proj", (width, width))
        shapes |= _with_bias(f"{block}.mlp.fc1", (inner, width))
        shapes |= _with_bias(f"{block}.mlp.fc2", (width, inner))
    shapes |= _with_bias("visual.merger.ln_q", (width,))
    shapes |= _with_bias("visual.merger.mlp.0", (merged, merged))
    shapes |= _with_bias("visual.merger.mlp.2", (vision.hidden_size, merged))
    return shapes


def _language_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        shapes |= _with_bias(f"{layer}.self_attn.q_proj", (heads, width))
        shapes |= _with_bias(f"{layer}.self_attn.k_proj", (kv_heads, width))
        shapes |= _with_bias(f"{layer}.self_attn.v_proj", (kv_heads, width))
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, heads)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    shapes["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def _with_bias(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
