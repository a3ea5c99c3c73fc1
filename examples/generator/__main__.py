"""`python -m examples.generator FOLDER --samples 60000`: writes pictures, clips and FOLDER/data.jsonl."""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from examples.generator.clips import write_clip
from examples.generator.samples import Sample, sample

_IN_A_FOLDER = 1000


def record(sample: Sample, images: list[str], clips: list[str]) -> dict[str, Any]:
    """The sample in the form `qvl finetune` reads."""
    marks = "<image>" * len(images) + "<video>" * len(clips)
    messages = []
    for number, turn in enumerate(sample.turns):
        messages.append({"role": "user", "content": (marks if number == 0 else "") + turn.question})
        messages.append({"role": "assistant", "content": turn.answer})
    media = {name: paths for name, paths in (("images", images), ("videos", clips)) if paths}
    return {"messages": messages, **media}


def write_sample(folder: Path, split: str, number: int) -> str:
    """Write the media of one sample; return its line."""
    made = sample(split, number)
    place = f"media/{number // _IN_A_FOLDER}"
    (folder / place).mkdir(parents=True, exist_ok=True)
    images, clips = [], []
    for index, image in enumerate(made.images):
        # Half of them as JPEG, whose traces people's pictures have as well.
        name = f"{place}/{number}-{index}.{'jpg' if number % 2 else 'png'}"
        image.save(folder / name, **({"quality": 85} if number % 2 else {"compress_level": 1}))
        images.append(name)
    if made.clip is not None:
        clips.append(f"{place}/{number}.mp4")
        write_clip(folder / clips[0], made.clip.frames)
    return json.dumps(record(made, images, clips), ensure_ascii=False)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.generator", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first sample")
    parser.add_argument("--split", default="train", help="another name gives other samples")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    numbers = range(options.first, options.first + options.samples)
    with ProcessPoolExecutor(options.processes) as pool:
        lines = pool.map(partial(write_sample, options.folder, options.split), numbers, chunksize=64)
        partial_file = options.folder / "data.jsonl.partial"
        with partial_file.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    partial_file.replace(options.folder / "data.jsonl")


if __name__ == "__main__":
    main()
