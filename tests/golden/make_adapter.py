"""Makes the adapters under `adapter/` with Hugging Face PEFT, and what transformers answers with each: adapter.npz.

By hand, in the environment of `make_reference.py` with peft 0.15.2: `python -m tests.golden.make_adapter`. The factors
are random and not zero, which no training is needed for; greedy tokens and the logits of the last prompt position are
kept for the picture case `image`, under keys that begin with the adapter's name.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from tests.golden import GOLDEN, save
from tests.golden.cases import CASES, VARIANTS
from tests.golden.make_reference import LEAST_MARGIN, generate, prepare
from tests.golden.reference_video import load_process_vision_info

LANGUAGE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "language": {"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE},
    "rslora": {
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": True,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 3},
    },
    "visual": {
        "r": 2,
        "lora_alpha": 4,
        "target_modules": r"(model\.layers\.\d+\.self_attn\.q_proj|visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
        r"|visual\.merger\.mlp\.[02])",
    },
}
STRENGTH = 0.15  # of the factors: the answer becomes another one, and logits stay in their range


def main() -> None:
    torch.set_num_threads(2)
    case = next(case for case in CASES if case.name == "image")
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "tiny"
        VARIANTS["tiny"].for_reference().write(base)
        processor = AutoProcessor.from_pretrained(base, use_fast=False)
        inputs = prepare(processor, case, load_process_vision_info())
        for number, (name, settings) in enumerate(ADAPTERS.items()):
            folder = GOLDEN / "adapter" / name
            write_adapter(base, folder, settings, seed=number)
            result = answer(base, folder, inputs)
            arrays |= {f"{name}_{key}": value for key, value in result.items()}
            margin = float(result["margin"])
            note = "" if margin >= LEAST_MARGIN else "  << margin is too small: choose another seed"
            print(f"{name:10} margin={margin:.4f} tokens={result['tokens'].tolist()}{note}")
    save("adapter", arrays)


def load(base: Path) -> Any:
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        base, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.generation_config.eos_token_id = None
    return model


def write_adapter(base: Path, folder: Path, settings: dict[str, Any], seed: int) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", base_model_name_or_path="qvl/tiny", **settings)
    model = get_peft_model(load(base), config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = STRENGTH * torch.randn(parameter.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = "qvl/tiny"
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would look the base up on the hub
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card


def answer(base: Path, folder: Path, inputs: Any) -> dict[str, np.ndarray]:
    model = PeftModel.from_pretrained(load(base), folder).eval()
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0].numpy()
        generated = generate(model, inputs)
    limits = np.array([logits.min(), logits.max()])
    return {"last_logits": logits[-1], "logits_range": limits, **generated}


if __name__ == "__main__":
    main()
