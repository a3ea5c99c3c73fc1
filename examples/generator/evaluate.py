"""`python -m examples.generator.evaluate --model DIR`: right answers by task on pictures the model has never seen.

Each sample is asked one question, by itself. An answer is right when it is word for word the expected one; of a
description, the things may come in any order; a box has to cover the thing with an IoU of 0.7.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from examples.generator.clips import write_clip
from examples.generator.drawing import Box
from examples.generator.samples import Sample, sample
from examples.generator.turns import Turn
from qvl.grounding import parse_boxes
from qvl.messages import Image, Message, Part, Video
from qvl.runtime.engine import Engine

SPLIT = "held-out"
IOU = 0.7


def is_right(turn: Turn, answer: str, size: tuple[int, int] | None = None) -> bool:
    """answer: with its grounding marks. size: (width, height) of the picture, for boxes."""
    if turn.boxes and size is not None:
        labels = [[box.label for box in parse_boxes(text)] for text in (answer, turn.answer)]
        return labels[0] == labels[1] and boxes_right(turn, answer, size) == len(turn.boxes)
    if turn.task in ("describe", "detail"):
        return _things(answer) == _things(turn.answer)
    return answer.strip() == turn.answer


def boxes_right(turn: Turn, answer: str, size: tuple[int, int]) -> int:
    """How many of the things asked for have a box of their name that covers them; each box counts for one of them."""
    found = parse_boxes(answer)
    right = 0
    for wanted, box in zip(parse_boxes(turn.answer), turn.boxes, strict=True):
        fits = [one for one in found if one.label == wanted.label and iou(one.bounds, box, size) >= IOU]
        if fits:
            right += 1
            found.remove(fits[0])
    return right


def iou(bounds: tuple[int, int, int, int], box: Box, size: tuple[int, int]) -> float:
    """Of a box in thousandths of the picture and one in pixels: what they share, by what they cover together."""
    left, right = (x * size[0] / 1000 for x in (bounds[0], bounds[2]))
    top, bottom = (y * size[1] / 1000 for y in (bounds[1], bounds[3]))
    width = max(0.0, min(right, box.right) - max(left, box.left))
    height = max(0.0, min(bottom, box.bottom) - max(top, box.top))
    shared = width * height
    together = max(0.0, right - left) * max(0.0, bottom - top) + box.width * box.height - shared
    return shared / together if together > 0 else 0.0


def _things(text: str) -> Counter[str]:
    """Without their places, which "where" asks for: of many things it is open which place they are nearest to."""
    things = re.split(r", | and ", text.strip().removeprefix("The picture shows ").rstrip("."))
    return Counter(re.sub(r" (at the (top|bottom)|on the (left|right)|in the middle).*", "", thing) for thing in things)


def conversation(made: Sample, folder: Path) -> list[Message]:
    """The first question of a sample. Clips become files in the folder, as a user's are."""
    parts: list[Part] = [Image(image) for image in made.images]
    if made.clip is not None:
        with tempfile.NamedTemporaryFile(dir=folder, suffix=".mp4", delete=False) as file:
            write_clip(Path(file.name), made.clip.frames)
        parts.append(Video(file.name))
    return [Message.of("user", *parts, made.turns[0].question)]


def samples(count: int, split: str = SPLIT) -> Iterator[Sample]:
    """The first of a split, each with one question."""
    return (sample(split, number, turns=1) for number in range(count))


class Judged(NamedTuple):
    """A question, the answer it got, whether that is right, and how many of its boxes are."""

    turn: Turn
    answer: str
    good: bool
    boxes: int


def judge(engine: Engine, wanted: Iterator[Sample], batch: int = 16) -> Iterator[Judged]:
    """Each question as it is answered."""
    sampling = engine.sampling(temperature=0.0, max_new_tokens=256)
    with tempfile.TemporaryDirectory() as folder:
        while group := list(islice(wanted, batch)):
            answers = engine.generate_batch([conversation(made, Path(folder)) for made in group], sampling)
            for made, answer in zip(group, answers, strict=True):
                turn = made.turns[0]
                size = made.images[0].size if made.images else None
                text = answer.marked_text
                boxes = boxes_right(turn, text, size) if turn.boxes and size is not None else 0
                yield Judged(turn, text, is_right(turn, text, size), boxes)


def table(right: Counter[str], asked: Counter[str]) -> str:
    """Markdown, a row a task."""
    rows = [f"| {task} | {asked[task]} | {right[task] / asked[task]:.1%} |" for task in sorted(asked)]
    everything = f"| all | {asked.total()} | {right.total() / asked.total():.1%} |"
    return "\n".join(["| task | asked | right |", "| --- | ---: | ---: |", *rows, everything])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.generator.evaluate", description=__doc__)
    parser.add_argument("--model", default=None, help="a folder; the demo model of this installation when left out")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--wrong", type=int, default=0, help="print so many wrong answers")
    parser.add_argument("--json", type=Path, default=None, help="write the counts to this file")
    parser.add_argument("--quant", default=None, help="width of the weights, as qvl infer takes it")
    options = parser.parse_args(arguments)
    engine = Engine.load("demo", model=options.model, quantize=options.quant)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    shown = 0
    boxes = [0, 0]  # right, asked for
    for turn, answer, good, found in judge(engine, samples(options.samples)):
        boxes = [boxes[0] + found, boxes[1] + len(turn.boxes)]
        asked[turn.task] += 1
        right[turn.task] += good
        if not good and shown < options.wrong:
            shown += 1
            print(f"{turn.task}: {turn.question}\n  expected {turn.answer}\n  answered {answer}")
    print(table(right, asked))
    print(f"\nof {boxes[1]} boxes, of one thing or of all, {boxes[0] / max(1, boxes[1]):.1%} are right")
    if options.json is not None:
        counts = {task: {"asked": asked[task], "right": right[task]} for task in sorted(asked)}
        options.json.write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
