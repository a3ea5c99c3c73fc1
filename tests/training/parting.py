"""Run by Paddle's launcher: the gradients of a model in parts, brought together.

Arguments: a checkpoint, a file for the result, "full" or the rank of a LoRA, with which layers are computed again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qvl import environment

environment.prepare()

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from qvl.model.config import ModelConfig  # noqa: E402
from qvl.model.part import Part  # noqa: E402
from qvl.model.weights import load_model  # noqa: E402
from qvl.training.batch import collate  # noqa: E402
from qvl.training.holders import Holders  # noqa: E402
from qvl.training.model import TrainingModel, choose_trained  # noqa: E402
from qvl.training.parts import complete_gradients, square_norm  # noqa: E402
from tests.training.support import training_example  # noqa: E402
from tests.training.test_trainer import BATCH  # noqa: E402


def main(checkpoint: Path, output: Path, method: str) -> None:
    rank, size = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    if size > 1:
        paddle.distributed.init_parallel_env()
    config = ModelConfig.from_folder(checkpoint)
    part = Part(rank, size)
    model = load_model(checkpoint, config, part=part)
    if method == "full":
        choose_trained(model, ("vision", "merger", "language"))
    else:
        from qvl.training.adapters import LANGUAGE_TARGETS, add_lora

        paddle.seed(5)
        targets = (*LANGUAGE_TARGETS, *(("lm_head",) if model.lm_head is not None else ()))
        lora = add_lora(model, rank=int(method), alpha=8.0, targets=targets, parts=("language", "vision"))
        for name, factor in lora.model.named_parameters():
            if name.endswith("lora_B"):  # zero at first, which would leave lora_A without a gradient
                cut = part.cut(name, config)
                shape = list(factor.shape)
                if cut is not None:
                    shape[cut.axis] = cut.whole
                whole = np.random.default_rng(len(name)).normal(0, 0.1, shape).astype(np.float32)
                held = whole if cut is None else np.take(whole, range(cut.start, cut.stop), axis=cut.axis)
                factor.set_value(paddle.to_tensor(held))
    examples = [training_example(name, checkpoint) for name in BATCH]
    model.train()
    loss = TrainingModel(model, loss_chunk=7, recompute=method != "full")(collate(examples, config, 10.0))
    loss.backward()
    learning = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    for parameter in learning.values():
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    complete_gradients(learning, part, config)
    norm = square_norm(learning, part, config)
    holders = Holders(rank, part=part, config=config)
    found = {name: holders.bring(name, p.grad, p.grad) for name, p in learning.items()}
    if rank == 0:
        gradients = {name: whole.numpy() for name, whole in found.items() if whole is not None}
        np.savez(output, **gradients, **{"/loss": loss.numpy(), "/square_norm": np.asarray(norm)})
    if size > 1:
        paddle.distributed.barrier()  # what one has sent is lost when it ends before the other took it


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
