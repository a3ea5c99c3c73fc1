"""Trains on the conversations of `training_cases` with PyTorch and writes what comes out as training-<case>.npz.

By hand, in the environment of make_reference: `python -m tests.golden.make_training_reference`.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration, get_cosine_schedule_with_warmup

from tests.golden import save
from tests.golden.cases import VARIANTS, Case
from tests.golden.media import MEDIA
from tests.golden.reference_video import load_process_vision_info
from tests.golden.training_cases import (
    EMBEDDING,
    HEAD,
    LANGUAGE,
    RECIPE,
    TRAINING_CASES,
    VISION,
    is_decayed,
    is_trained,
    sample,
)

IGNORED = -100
_OPENING, _CLOSING = "<|im_start|>assistant\n", "<|im_end|>"
_REPLY = re.compile(f"(?<={re.escape(_OPENING)})(.*?{re.escape(_CLOSING)})", re.DOTALL)
_MERGED = 4  # patches to a vision token


@dataclass(frozen=True)
class Sample:
    """A conversation as transformers reads it, batch of one, and its labels [1, L]."""

    inputs: Any
    labels: torch.Tensor

    @property
    def supervised(self) -> int:
        return int((self.labels[:, 1:] != IGNORED).sum())


def main() -> None:
    torch.set_num_threads(2)
    process_vision_info = load_process_vision_info()
    with tempfile.TemporaryDirectory() as folder:
        for variant in dict.fromkeys(case.checkpoints[0] for case in TRAINING_CASES):
            where = Path(folder) / variant
            VARIANTS[variant].for_reference().write(where)
            processor = AutoProcessor.from_pretrained(where, use_fast=False)
            cases = [case for case in TRAINING_CASES if case.checkpoints[0] == variant]
            samples = {case.name: prepare(processor, case, process_vision_info) for case in cases}
            model = load(where)
            for name, one in samples.items():
                arrays = first_step(model, one)
                save(f"training-{name}", arrays)
                print(f"{name:14} L={one.labels.shape[1]:4} supervised={one.supervised:3} loss={arrays['loss']:.6f}")
            if variant == RECIPE.checkpoint:
                arrays = train(load(where), [samples[name] for name in RECIPE.cases])
                save("training-adamw", arrays)
                for key in ("learning_rate", "loss", "grad_norm"):
                    print(f"{key:14} {arrays[key]}")


def load(folder: Path) -> Any:
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    )
    return model.train()  # there is no dropout in it


def prepare(processor: Any, case: Case, process_vision_info: Any) -> Sample:
    messages = json.loads(json.dumps(case.messages))
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            for kind in {"image", "video"} & part.keys():
                part[kind] = str(MEDIA / part[kind])
    text = processor.apply_chat_template(messages, tokenize=False)
    images, videos = process_vision_info(messages)
    inputs = processor(text=[text], images=images, videos=videos, return_tensors="pt")
    ids, labels = tokenise(processor.tokenizer, text, inputs)
    if ids != inputs["input_ids"][0].tolist():
        raise SystemExit(f"{case.name}: a reply does not have the same tokens by itself as in the whole conversation")
    return Sample(inputs, torch.tensor([labels]))


def tokenise(tokenizer: Any, text: str, inputs: Any) -> tuple[list[int], list[int]]:
    """The ids and labels of a conversation laid out by the template, each reply tokenised by itself."""
    sizes = {
        tokenizer.convert_tokens_to_ids(f"<|{kind}_pad|>"): iter(inputs.get(f"{kind}_grid_thw", ()))
        for kind in ("image", "video")
    }
    ids: list[int] = []
    labels: list[int] = []
    for number, piece in enumerate(_REPLY.split(text)):
        new: list[int] = []
        for token in tokenizer(piece)["input_ids"]:
            new += [token] * (int(next(sizes[token]).prod()) // _MERGED if token in sizes else 1)
        ids += new
        labels += new if number % 2 else [IGNORED] * len(new)
    return ids, labels


def first_step(model: Any, one: Sample) -> dict[str, Any]:
    """Loss and gradients with every parameter trainable."""
    model.zero_grad()
    loss = model(**one.inputs, labels=one.labels, use_cache=False).loss
    loss.backward()
    ids = one.inputs["input_ids"][0].numpy()
    arrays: dict[str, Any] = {
        "input_ids": ids,
        "labels": one.labels[0].numpy(),
        "supervised": np.int64(one.supervised),
        "loss": np.float32(loss.item()),
        "embedding_rows": np.unique(ids),
    }
    for name, parameter in model.named_parameters():
        if parameter.grad is None:  # the vision tower, when there is nothing to see
            continue
        gradient = parameter.grad.numpy()
        if name in (*LANGUAGE, *VISION, HEAD, EMBEDDING):
            rows = arrays["embedding_rows"]
            arrays[f"grad.{name}"] = gradient[rows] if name == EMBEDDING else sample(gradient)
            arrays[f"grad_norm.{name}"] = np.float32(np.linalg.norm(gradient.astype(np.float64)))
    return arrays


def train(model: Any, batch: list[Sample]) -> dict[str, Any]:
    """RECIPE in PyTorch, each conversation of the batch run by itself."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained(name))
    trained = {name: parameter for name, parameter in model.named_parameters() if is_trained(name)}
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    decayed = [parameter for name, parameter in trained.items() if is_decayed(name, parameter.ndim)]
    others = [parameter for name, parameter in trained.items() if not is_decayed(name, parameter.ndim)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": RECIPE.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=RECIPE.learning_rate,
        betas=RECIPE.betas,
        eps=RECIPE.epsilon,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, RECIPE.warmup_steps, RECIPE.steps)
    supervised = sum(one.supervised for one in batch)
    losses, norms, rates = [], [], []
    for _ in range(RECIPE.steps):
        optimizer.zero_grad()
        total = 0.0
        for one in batch:
            loss = token_losses(model, one).sum() / supervised
            loss.backward()
            total += loss.item()
        losses.append(total)
        rates.append(schedule.get_last_lr()[0])
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), RECIPE.max_grad_norm).item())
        optimizer.step()
        schedule.step()
    arrays: dict[str, Any] = {
        "loss": np.array(losses, np.float64),
        "grad_norm": np.array(norms, np.float64),
        "learning_rate": np.array(rates, np.float64),
        "supervised": np.int64(supervised),
    }
    for name in (*LANGUAGE, EMBEDDING):
        arrays[f"parameter.{name}"] = sample(trained[name].detach().numpy())
        arrays[f"change_norm.{name}"] = np.float32((trained[name].detach() - before[name]).double().norm())
    return arrays


def token_losses(model: Any, one: Sample) -> torch.Tensor:
    """[L - 1]: the loss of each token but the first; 0 where it is not supervised."""
    logits = model(**one.inputs, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, one.labels[0, 1:], reduction="none", ignore_index=IGNORED)


if __name__ == "__main__":
    main()
