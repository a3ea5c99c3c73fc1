"""Run by Paddle's launcher: train a little, and write whose state of the optimiser this process has.

Arguments: a checkpoint, and a folder for the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qvl import environment

environment.prepare()

import paddle  # noqa: E402

from qvl.training.estimate import largest_share  # noqa: E402
from tests.training.support import training_example  # noqa: E402
from tests.training.test_trainer import BATCH, Harness, recipe  # noqa: E402


def main(checkpoint: Path, output: Path) -> None:
    examples = [training_example(name, checkpoint) for name in (*BATCH, BATCH[0])]
    ranks = paddle.distributed.get_world_size()
    harness = Harness(checkpoint, examples, output, recipe(batch_size=4, micro_batch_size=1), steps=2, ranks=ranks)
    trainer = harness.run()
    learning = trainer.learning()
    state = trainer.adamw.state_dict()
    held = [name for name, p in learning.items() if any(key.startswith(f"{p.name}_moment") for key in state)]
    sizes = {name: int(p.size) for name, p in learning.items()}
    share = {"held": held, "learning": sizes, "estimated": largest_share(list(sizes.values()), ranks)}
    (output / f"share-{paddle.distributed.get_rank()}.json").write_text(json.dumps(share))
    paddle.distributed.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
