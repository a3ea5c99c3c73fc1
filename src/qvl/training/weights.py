"""What a run learns, and how it is kept: an adapter or a whole model, with what is needed to ask it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paddle

from qvl.hub.names import full_name
from qvl.model.asking import end_answers_at, record_template
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.save import save_model
from qvl.model.weights import fill_model
from qvl.processing.template import IM_END
from qvl.training.holders import Holders
from qvl.training.model import choose_trained
from qvl.training.run import Run
from qvl.training.shards import whole_shapes


@dataclass(frozen=True)
class Weights:
    """How what a run learns is written to a folder and read back.

    give: what the processes that do not save call meanwhile.
    """

    name: str
    save: Callable[[Path], None]
    load: Callable[[Path], None]
    give: Callable[[], None]


def choose_weights(run: Run, model: Qwen2VL) -> Weights:
    """Choose what learns, and say how to keep it."""
    holders = Holders(run.arrangement.process, part=model.held, config=run.config)

    def whole(name: str, held: paddle.Tensor) -> paddle.Tensor:
        brought = holders.bring(name, held, held)
        assert brought is not None
        return brought

    if run.options.method == "full":
        return _of_model(run, model, holders, whole)
    return _of_adapter(run, model, holders, whole)


def _of_model(
    run: Run, model: Qwen2VL, holders: Holders, whole: Callable[[str, paddle.Tensor], paddle.Tensor]
) -> Weights:
    dtype = run.placement.dtype
    choose_trained(model, run.options.train)

    def save(folder: Path) -> None:
        save_model(model, folder, source=run.folder, dtype=dtype, whole=whole)
        if run.profile.template == "chat":
            end_answers_at(folder, run.processor.tokenizer.special_id(IM_END), run.config.eos_token_id)

    return Weights(
        "model",
        save,
        lambda folder: fill_model(model, folder, dtype),
        lambda: holders.give(model.named_parameters()),
    )


def _of_adapter(
    run: Run, model: Qwen2VL, holders: Holders, whole: Callable[[str, paddle.Tensor], paddle.Tensor]
) -> Weights:
    from qvl.training.adapters import add_lora, factors_of, load_adapter_into, save_adapter

    lora = run.options.lora
    paddle.seed(run.options.seed)
    with whole_shapes(model):
        wrapped = add_lora(
            model,
            rank=lora.rank,
            alpha=lora.alpha,
            dropout=lora.dropout,
            rslora=lora.rslora,
            targets=lora.targets,
            parts=lora.parts,
        )
    base = str(Path(run.profile.model).resolve()) if Path(run.profile.model).is_dir() else full_name(run.profile.model)

    def save(folder: Path) -> None:
        save_adapter(wrapped, folder, base, whole)
        record_template(folder, run.profile.template, run.processor.tokenizer.special_id(IM_END))

    def load(folder: Path) -> None:
        with whole_shapes(model):  # by which the file is checked
            load_adapter_into(wrapped, folder)

    return Weights("adapter", save, load, lambda: holders.give(factors_of(wrapped)))
