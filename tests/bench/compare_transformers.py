"""Time qvl and transformers on one checkpoint in one run, taking turns. Run by hand; figures go to docs/performance.md.

    python -m tests.bench.compare_transformers MODEL PICTURE --peer PYTHON [--runs 3] [--new-tokens 32]

PYTHON is an interpreter with torch and transformers; qvl runs on this one. Every run is a process of its own, so that
load times and peaks of memory are whole. The last line is one JSON object with all runs, medians and versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

QUESTION = "Describe this picture in one short sentence."
FIGURES = ("load_seconds", "time_to_first_token", "tokens_per_second", "peak_memory_gib", "prompt_tokens")

PEER = """
import json, resource, sys, time
import torch, transformers
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
folder, picture, question, new_tokens, threads = sys.argv[1:6]
torch.set_num_threads(int(threads))
start = time.perf_counter()
model = Qwen2VLForConditionalGeneration.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="sdpa")
model.eval()
processor = AutoProcessor.from_pretrained(folder)
loaded = time.perf_counter()
messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
text = processor.apply_chat_template(messages, add_generation_prompt=True)
inputs = processor(text=[text], images=[Image.open(picture).convert("RGB")], return_tensors="pt")
times = []
class Clock(transformers.StoppingCriteria):
    def __call__(self, ids, scores, **_):
        times.append(time.perf_counter())
        return torch.zeros(ids.shape[0], dtype=torch.bool)
with torch.inference_mode():
    out = model.generate(**inputs, max_new_tokens=int(new_tokens), min_new_tokens=int(new_tokens), do_sample=False,
                         repetition_penalty=1.0, stopping_criteria=transformers.StoppingCriteriaList([Clock()]))
ids = out[0, inputs["input_ids"].shape[1]:].tolist()
print(json.dumps({
    "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
    "load_seconds": loaded - start,
    "time_to_first_token": times[0] - loaded,
    "tokens_per_second": (len(times) - 1) / (times[-1] - times[0]),
    "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    "prompt_tokens": inputs["input_ids"].shape[1],
    "token_ids": ids,
}))
"""


def run_peer(options: argparse.Namespace) -> dict[str, Any]:
    arguments = [options.model, options.picture, QUESTION, str(options.new_tokens), str(options.threads)]
    return _last_line([options.peer, "-c", PEER, *arguments])


def run_qvl(options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "qvl.cli", "infer", options.picture, "-p", QUESTION, "--model", options.model]
    command += ["--profile", "2b", "--max-new-tokens", str(options.new_tokens), "--ignore-eos", "--temperature", "0"]
    command += ["--repetition-penalty", "1", "--threads", str(options.threads), "--device", "cpu", "--json"]
    answer = _last_line(command)
    stats = answer["stats"]
    stats["peak_memory_gib"] = stats["peak_memory_bytes"] / 2**30
    return {**stats, "token_ids": answer["token_ids"]}


def _last_line(command: list[str]) -> dict[str, Any]:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{command[0]} failed:\n{run.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("model")
    arguments.add_argument("picture")
    arguments.add_argument("--peer", required=True, help="python with torch and transformers")
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--new-tokens", type=int, default=32)
    arguments.add_argument("--threads", type=int, default=2)
    options = arguments.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {"qvl": [], "transformers": []}
    for number in range(options.runs):
        for name, run in (("qvl", run_qvl), ("transformers", run_peer)):
            figures = run(options)
            runs[name].append(figures)
            shown = "  ".join(f"{key} {figures[key]:.2f}" for key in FIGURES)
            print(f"{number + 1} {name:13} {shown}", flush=True)
    same = {tuple(figures["token_ids"]) for figures in (*runs["qvl"], *runs["transformers"])}
    medians = {
        name: {key: statistics.median(f[key] for f in figures) for key in FIGURES} for name, figures in runs.items()
    }
    print(
        json.dumps(
            {
                "medians": medians,
                "answers_equal": len(same) == 1,
                "peer": runs["transformers"][0]["version"],
                "cpu": _cpu(),
                "threads": options.threads,
                "runs": runs,
            }
        )
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
