"""The same decode step by transformers, where it is installed: its modules, a static cache, random weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from tests.gpu.kernels.bench.sizes import Model


def decode_step(model: Model, batch: int, context: int, spare: int, where: torch.device) -> Callable[[], None]:
    """A function that a graph may capture: a token for each row, from the one before. Raises ImportError and others."""
    from transformers import StaticCache
    from transformers.models.qwen2_vl import configuration_qwen2_vl as configuration
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    sections = [model.dim // 8, model.dim // 2 - 5 * (model.dim // 16), 5 * (model.dim // 16) - model.dim // 8]
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": sections, "rope_theta": 1e6}
    config_class = configuration.Qwen2VLTextConfig
    told = "rope_parameters" if hasattr(config_class(), "rope_parameters") else "rope_scaling"
    config = config_class(
        vocab_size=model.vocab,
        hidden_size=model.hidden,
        intermediate_size=model.inner,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=32768,
        **{told: rope},
    )
    config._attn_implementation = "sdpa"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(where):
            language = modeling.Qwen2VLTextModel(config).eval().requires_grad_(False)
            head = torch.nn.Linear(model.hidden, model.vocab, bias=False).requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    if model.tied:
        head.weight = language.embed_tokens.weight
    cache = StaticCache(config=config, max_cache_len=context + spare)
    return _loop(language, head, cache, batch, context, where)


def _loop(language: Any, head: Any, cache: Any, batch: int, context: int, where: torch.device) -> Callable[[], None]:
    takes = inspect.signature(language.forward).parameters
    named = "cache" if "cache" in takes else "past_key_values"
    tokens = torch.zeros((batch, 1), dtype=torch.int64, device=where)
    place = torch.full((1,), context, dtype=torch.int64, device=where)

    def forward(embedded: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        positions = places.view(1, 1, -1).expand(3, batch, -1)
        more = {"cache_position": places} if "cache_position" in takes else {}
        given = {named: cache, "use_cache": True, "position_ids": positions}
        return language(inputs_embeds=embedded, **given, **more).last_hidden_state

    def step() -> None:
        with torch.no_grad():
            hidden = forward(language.embed_tokens(tokens), place)
            tokens.copy_(head(hidden[:, -1:]).argmax(dim=-1))
            place.add_(1)

    with torch.no_grad():
        forward(
            torch.randn(batch, context, head.in_features, device=where).bfloat16(), torch.arange(context, device=where)
        )
    return step
