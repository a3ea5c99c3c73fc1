"""Run by Paddle's launcher: one process is asked to stop while both judge held-out samples; write how each ended.

Arguments: a checkpoint, and a folder for the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.processing.prompt import Example  # noqa: E402
from qvl.training.recorder import Evaluation  # noqa: E402
from tests.training.support import training_example  # noqa: E402
from tests.training.test_trainer import BATCH, Harness, recipe  # noqa: E402


class HeldOut:
    """Seven examples, of which the second process's first sends it the wish to stop."""

    def __init__(self, example: Example, asked: list[bool], *, asks: bool) -> None:
        self.example, self.asked, self.asks, self.reads = example, asked, asks, 0

    def __len__(self) -> int:
        return 7

    def __getitem__(self, _: int) -> Example:
        self.reads += 1
        if self.asks:
            self.asked.append(True)
        return self.example


def main(checkpoint: Path, output: Path) -> None:
    examples = [training_example(name, checkpoint) for name in (*BATCH, BATCH[0])]
    ranks, rank = paddle.distributed.get_world_size(), paddle.distributed.get_rank()
    asked: list[bool] = []
    judged: list[int] = []

    def on_loss(step: int, _loss: float) -> bool:
        judged.append(step)
        return False

    held_out = HeldOut(examples[0], asked, asks=rank == 1)
    harness = Harness(checkpoint, examples, output, recipe(batch_size=4, micro_batch_size=1), steps=3, ranks=ranks)
    harness.evaluation = Evaluation(held_out, 1, on_loss)
    harness.wants_stop = lambda: bool(asked)
    trainer = harness.run()
    ended = {"stopped": trainer.stopped, "reads": held_out.reads, "judged": judged, "updates": len(harness.records)}
    (output / f"ended-{rank}.json").write_text(json.dumps(ended))
    paddle.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
