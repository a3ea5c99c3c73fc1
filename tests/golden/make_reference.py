"""Runs the golden cases through transformers and writes what it makes of them as <case>.npz beside this file.

By hand, in an environment of its own (Python 3.11, torch 2.13.0 CPU, transformers 4.49.0, qwen-vl-utils 0.0.8, decord
0.6.0, pillow 13.0.0; no torchvision): `python -m tests.golden.make_reference [--real-vocabulary FOLDER]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from qvl.hub.random_checkpoint import tensors_sha256
from tests.golden import GOLDEN, sample_rows, save
from tests.golden.cases import CASES, NEW_TOKENS, VARIANTS, Case, Variant
from tests.golden.media import MEDIA
from tests.golden.reference_samplers import sampling_reference
from tests.golden.reference_tokens import token_reference
from tests.golden.reference_video import load_process_vision_info

LEAST_MARGIN = 1e-3  # of the range of the logits; what a token must be ahead for equal tokens to be a fair demand
TAIL, STRIDE = 8, 7


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--real-vocabulary", type=Path, help="folder with Qwen2's vocab.json and merges.txt")
    arguments.add_argument("--only", nargs="*", help="names of cases; the other files are left alone")
    options = arguments.parse_args()
    torch.set_num_threads(2)
    process_vision_info = load_process_vision_info()
    with tempfile.TemporaryDirectory() as folder:
        for variant in dict.fromkeys(case.checkpoints[0] for case in CASES):
            where = Path(folder) / variant
            VARIANTS[variant].for_reference().write(where)
            cases = [case for case in CASES if case.checkpoints[0] == variant]
            run_variant(where, [c for c in cases if not options.only or c.name in options.only], process_vision_info)
        if not options.only:
            save("sampling", sampling_reference())
            save("tokens", token_reference(Path(folder) / "tiny", options.real_vocabulary))
            write_fingerprints()


def write_fingerprints() -> None:
    """The weights behind the files, so that a changed generator shows up as what it is."""
    distinct: dict[str, Variant] = {"tiny": VARIANTS["tiny"], "untied": VARIANTS["untied"]}
    sums = {name: tensors_sha256(variant.config, variant.seed) for name, variant in distinct.items()}
    (GOLDEN / "checkpoints.json").write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def run_variant(folder: Path, cases: list[Case], process_vision_info: Any) -> None:
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    ).eval()
    # Exactly NEW_TOKENS tokens come out: none of them ends the answer, and none is preferred or avoided.
    model.generation_config.eos_token_id = None
    for case in cases:
        inputs = prepare(processor, case, process_vision_info)
        with torch.no_grad():
            arrays = run_case(model, inputs)
        save(case.name, arrays)
        margin, kinds = float(arrays["margin"]), len(set(arrays["tokens"].tolist()))
        note = "" if margin >= LEAST_MARGIN else "  << margin is too small: change the wording of this case"
        print(f"{case.name:16} L={len(arrays['input_ids']):4} margin={margin:.4f} distinct={kinds}{note}")


def prepare(processor: Any, case: Case, process_vision_info: Any) -> Any:
    """What a user of transformers does: template, qwen-vl-utils for the media, processor."""
    messages = json.loads(json.dumps(case.messages))
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            for kind in {"image", "video"} & part.keys():
                files = part[kind]
                part[kind] = str(MEDIA / files) if isinstance(files, str) else [str(MEDIA / file) for file in files]
    # Through the tokenizer: the processor's own method of 4.49 drops add_vision_id in silence.
    text = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=processor.chat_template,
        tokenize=False,
        add_generation_prompt=True,
        add_vision_id=case.add_vision_id,
    )
    images, videos = process_vision_info(messages)
    return processor(text=[text], images=images, videos=videos, return_tensors="pt")


def run_case(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    positions, deltas = model.get_rope_index(inputs["input_ids"], **grids, attention_mask=inputs["attention_mask"])
    arrays: dict[str, np.ndarray] = {
        "input_ids": inputs["input_ids"][0].numpy(),
        "position_ids": positions[:, 0].numpy(),
        "rope_delta": deltas.reshape(()).numpy(),
    }
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels not in inputs:
            continue
        grid = inputs[f"{kind}_grid_thw"]
        features = model.visual(inputs[pixels], grid_thw=grid)
        arrays[f"{kind}_grid_thw"] = grid.numpy()
        arrays |= sample_rows(f"{kind}_patches", inputs[pixels].numpy())
        arrays |= sample_rows(f"{kind}_features", features.numpy())
    logits = model(**inputs, use_cache=False).logits[0].numpy()
    arrays["last_logits"] = logits[-1]
    arrays["tail_logits"] = logits[-TAIL:, ::STRIDE]
    arrays["logits_range"] = np.array([logits.min(), logits.max()])
    return arrays | generate(model, inputs)


def generate(model: Any, inputs: Any) -> dict[str, np.ndarray]:
    out = model.generate(
        **inputs,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :].numpy()
    if len(tokens) != NEW_TOKENS:
        raise SystemExit(f"{len(tokens)} tokens came, {NEW_TOKENS} were wanted")
    steps = torch.stack([step[0] for step in out.logits]).numpy()
    best = np.sort(steps, axis=1)[:, -2:]
    margins = (best[:, 1] - best[:, 0]) / (steps.max(axis=1) - steps.min(axis=1))
    return {"tokens": tokens, "margins": margins, "margin": margins.min()}


if __name__ == "__main__":
    main()
