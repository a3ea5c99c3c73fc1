"""The trainer learns what the reference learns, step for step, and goes on exactly where it stopped."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from qvl.errors import CheckpointError, QvlError
from qvl.model.config import ModelConfig
from qvl.model.device import place
from qvl.model.weights import fill_model, load_model
from qvl.processing.prompt import Example
from qvl.profile_training import TrainingOptions
from qvl.training.batch import collate
from qvl.training.checkpoints import last_checkpoint
from qvl.training.loader import Loader, Source
from qvl.training.loss import linear_cross_entropy
from qvl.training.model import TrainingModel, choose_trained
from qvl.training.plan import Plan
from qvl.training.record import StepRecord
from qvl.training.recorder import Evaluation, Recorder
from qvl.training.trainer import SftTrainer, make_arguments
from tests.conftest import CheckpointOf
from tests.golden.training_cases import EMBEDDING, LANGUAGE, RECIPE, TRAINING_CASES, sample
from tests.training.support import load_training_case, stored_layout, training_example

BATCH = RECIPE.cases


@dataclass
class Harness:
    """A trainer on examples at hand, and what it recorded."""

    folder: Path
    examples: list[Example]
    output: Path
    options: TrainingOptions
    steps: int
    ranks: int = 1
    full_at: int | None = None  # the checkpoint for which the disk has no room
    evaluation: Evaluation | None = None
    source: Source | None = None  # what the examples are read from, if not the list itself
    wants_stop: Callable[[], bool] = lambda: False
    records: list[StepRecord] = field(default_factory=list)

    def run(self, *, stop_after: int | None = None, resume: bool = False) -> SftTrainer:
        config = ModelConfig.from_folder(self.folder)
        model = load_model(self.folder, config)
        choose_trained(model, self.options.train)
        plan = Plan(
            [len(example.prompt) for example in self.examples],
            [example.supervised_tokens for example in self.examples],
            batch_size=self.options.batch_size,
            micro_batch_size=self.options.micro_batch_size,
            ranks=self.ranks,
            seed=self.options.seed,
            balance=self.options.balance_lengths,
        )
        loader = Loader(
            plan,
            self.examples if self.source is None else self.source,
            config,
            rank=paddle.distributed.get_rank(),
            steps=self.steps,
            workers=self.options.workers,
        )
        recorder = Recorder(
            self.records.append,
            seed=self.options.seed,
            save_steps=self.options.save_steps,
            wants_stop=lambda: self.wants_stop() or (stop_after is not None and len(self.records) >= stop_after),
            evaluation=self.evaluation,
        )
        from qvl.model.save import save_model

        def save(folder: Path) -> None:
            save_model(model, folder / "model", source=self.folder, dtype="float32")
            if self.records[-1].step == self.full_at:
                raise OSError(errno.ENOSPC, "No space left on device")

        trainer = SftTrainer(
            TrainingModel(model, loss_chunk=self.options.loss_chunk, recompute=self.options.recompute),
            make_arguments(self.options, self.output, self.steps, plan, place("cpu", "float32")),
            loader,
            save_weights=save,
            load_weights=lambda folder: fill_model(model, folder / "model", "float32"),
            save_total_limit=self.options.save_total_limit,
            callbacks=[recorder],
        )
        recorder.trainer = trainer
        checkpoint = last_checkpoint(self.output) if resume else None
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer


def recipe(**changes: object) -> TrainingOptions:
    """That of the AdamW reference."""
    values: dict[str, object] = {
        "method": "full",
        "learning_rate": RECIPE.learning_rate,
        "warmup_steps": float(RECIPE.warmup_steps),
        "batch_size": 3,
        "save_steps": 1000,
        "workers": 0,
    }
    return TrainingOptions(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("case", TRAINING_CASES, ids=lambda case: case.name)
def test_the_loss_of_a_conversation_is_the_references(case: object, checkpoint_variant: CheckpointOf) -> None:
    name, checkpoint = case.name, case.checkpoints[0]  # type: ignore[attr-defined]
    folder = checkpoint_variant(checkpoint)
    config = ModelConfig.from_folder(folder)
    example = training_example(name, folder)
    model = TrainingModel(load_model(folder, config), loss_chunk=5, recompute=False)
    reference = load_training_case(name)
    with paddle.no_grad():
        loss = float(model(collate([example], config, example.supervised_tokens)))
    assert example.supervised_tokens == int(reference["supervised"])
    assert loss == pytest.approx(float(reference["loss"]), abs=1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("recompute", [False, True])
def test_five_steps_of_adamw_are_the_references(
    tiny_checkpoint: Path, tmp_path: Path, micro_batch_size: int, recompute: bool
) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in BATCH]
    options = recipe(micro_batch_size=micro_batch_size, recompute=recompute)
    harness = Harness(tiny_checkpoint, examples, tmp_path, options, steps=5)
    trainer = harness.run()
    reference = load_training_case("adamw")
    np.testing.assert_allclose([r.loss for r in harness.records], reference["loss"], rtol=0, atol=1e-3)
    np.testing.assert_allclose([r.grad_norm for r in harness.records], reference["grad_norm"], rtol=1e-3)
    np.testing.assert_allclose([r.learning_rate for r in harness.records], reference["learning_rate"], atol=1e-9)
    assert {r.supervised_tokens for r in harness.records} == {int(reference["supervised"])}
    parameters = dict(trainer.model.qwen.named_parameters())
    for name in (*LANGUAGE, EMBEDDING):
        got = sample(stored_layout(trainer.model.qwen, name, parameters[name]))
        scale = float(reference[f"change_norm.{name}"])
        np.testing.assert_allclose(got, reference[f"parameter.{name}"], rtol=0, atol=1e-3 * scale)


def test_samples_in_one_row_do_not_see_each_other(tiny_checkpoint: Path) -> None:
    """What packing is here: sequences laid end to end, each with its own positions."""
    config = ModelConfig.from_folder(tiny_checkpoint)
    model = load_model(tiny_checkpoint, config)
    choose_trained(model, ("language", "merger", "vision"))
    training = TrainingModel(model, loss_chunk=64, recompute=False)
    examples = [training_example(case.name, tiny_checkpoint) for case in TRAINING_CASES if case.name != "untied"]
    total = sum(example.supervised_tokens for example in examples)

    def gradients(batches: list[list[Example]]) -> tuple[float, dict[str, np.ndarray]]:
        losses = [training(collate(batch, config, total)) for batch in batches]
        for loss in losses:
            loss.backward()
        found = {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}
        model.clear_gradients()
        return sum(float(loss) for loss in losses), found

    alone_loss, alone = gradients([[example] for example in examples])
    packed_loss, packed = gradients([examples])
    assert packed_loss == pytest.approx(alone_loss, rel=1e-6)
    assert alone.keys() == packed.keys()
    for name, gradient in alone.items():
        np.testing.assert_allclose(packed[name], gradient, rtol=0, atol=1e-4 * np.abs(gradient).max(), err_msg=name)


def test_frozen_parts_hold_neither_gradient_nor_state(tiny_checkpoint: Path, tmp_path: Path) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in BATCH]
    harness = Harness(tiny_checkpoint, examples, tmp_path, recipe(), steps=2)
    before = dict(load_model(tiny_checkpoint, ModelConfig.from_folder(tiny_checkpoint)).named_parameters())
    trainer = harness.run()
    assert not any(name.startswith("visual.") for name in trainer.learning())
    for name, parameter in trainer.model.qwen.named_parameters():
        if name.startswith("visual."):
            assert parameter.grad is None
            np.testing.assert_array_equal(parameter.numpy(), before[name].numpy())
    state = trainer.optimizer.state_dict()
    frozen = {p.name for n, p in trainer.model.qwen.named_parameters() if n.startswith("visual.")}
    assert not any(key.startswith(name + "_") for key in state for name in frozen)


@pytest.mark.parametrize("stop_after", [1, 4, 7])
def test_an_interrupted_run_ends_as_an_unbroken_one(tiny_checkpoint: Path, tmp_path: Path, stop_after: int) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in ("picture", "turns", "text", "two-pictures")]
    options = recipe(batch_size=3, seed=5, warmup_steps=0.0)  # an epoch ends within an update
    whole = Harness(tiny_checkpoint, examples, tmp_path / "whole", options, steps=9)
    whole.run()
    parts = Harness(tiny_checkpoint, examples, tmp_path / "parts", options, steps=9)
    parts.run(stop_after=stop_after)
    assert len(parts.records) == stop_after
    again = Harness(tiny_checkpoint, examples, tmp_path / "parts", options, steps=9)
    again.run(resume=True)
    losses = [(r.step, r.loss, r.grad_norm, r.learning_rate) for r in (*parts.records, *again.records)]
    assert losses == [(r.step, r.loss, r.grad_norm, r.learning_rate) for r in whole.records]


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_and_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in BATCH]
    whole = Harness(tiny_checkpoint, examples, tmp_path / "whole", recipe(), steps=5)
    whole.run()
    options = recipe(save_steps=2, save_total_limit=1)
    broken = Harness(tiny_checkpoint, examples, tmp_path / "out", options, steps=5, full_at=4)
    with pytest.raises(CheckpointError, match=r"checkpoint-4: cannot be written \(No space left on device\)"):
        broken.run()
    assert [path.name for path in (tmp_path / "out").iterdir() if "checkpoint" in path.name] == ["checkpoint-2"]
    again = Harness(tiny_checkpoint, examples, tmp_path / "out", options, steps=5)
    again.run(resume=True)
    assert [(r.step, r.loss) for r in again.records] == [(r.step, r.loss) for r in whole.records[2:]]


def test_a_run_asked_to_stop_is_not_evaluated_first_and_goes_on_as_an_unbroken_one(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in BATCH]

    def run(name: str, *, stop_after: int | None = None, resume: bool = False) -> list[tuple[int, float]]:
        judged: list[tuple[int, float]] = []

        def on_loss(step: int, loss: float) -> bool:
            judged.append((step, loss))
            return False

        evaluation = Evaluation(examples, 2, on_loss)
        harness = Harness(tiny_checkpoint, examples, tmp_path / name, recipe(), steps=5, evaluation=evaluation)
        harness.run(stop_after=stop_after, resume=resume)
        return judged

    whole = run("whole")
    assert [step for step, _ in whole] == [2, 4, 5]
    stopped = run("parts", stop_after=3)
    assert stopped == whole[:1] and last_checkpoint(tmp_path / "parts") == tmp_path / "parts" / "checkpoint-3"
    assert run("parts", resume=True) == whole[1:]


@pytest.mark.parametrize("figure", ["loss", "gradient norm"])
def test_a_figure_that_is_no_number_ends_the_run_before_it_is_learnt(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: str
) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in BATCH]
    harness = Harness(tiny_checkpoint, examples, tmp_path, recipe(save_steps=1), steps=4)
    forward = TrainingModel.forward

    def broken(model: TrainingModel, *inputs: object) -> paddle.Tensor:
        loss = forward(model, *inputs)  # type: ignore[arg-type]
        if len(harness.records) < 2:
            return loss
        # The square root of nothing has no slope: 0 / 0 is added to every gradient.
        return loss + paddle.sqrt(loss * 0.0) if figure == "gradient norm" else loss * math.nan

    monkeypatch.setattr(TrainingModel, "forward", broken)
    with pytest.raises(QvlError, match=rf"^update 3: the {figure} is (nan|inf), so the run ends before it"):
        harness.run()
    assert [record.step for record in harness.records] == [1, 2]
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"


class SlowExamples:
    """Each takes a second of a clock that nothing else moves."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples, self.now = examples, 0.0

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        self.now += 1.0
        return self.examples[index]


def test_the_seconds_of_an_update_are_also_those_it_waits_for_its_samples(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [training_example(name, tiny_checkpoint) for name in BATCH]
    slow = SlowExamples(examples)
    evaluation = Evaluation(slow, 2, lambda *_: True)  # which takes time too, and no update's
    harness = Harness(tiny_checkpoint, examples, tmp_path, recipe(), 3, evaluation=evaluation, source=slow)
    monkeypatch.setattr("qvl.training.recorder.time", SimpleNamespace(perf_counter=lambda: slow.now))
    harness.run()
    assert [record.seconds for record in harness.records] == [3.0, 3.0, 3.0]
    assert slow.now == 3 * 3.0 + 2 * len(examples)


def test_a_part_that_some_updates_do_not_reach_goes_on_as_if_unbroken(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A vision tower that learns, and at first only samples without a picture."""
    examples = [training_example(name, tiny_checkpoint) for name in ("text", "text", "picture")]
    options = recipe(train=("vision", "merger", "language"), batch_size=1, balance_lengths=False)
    whole = Harness(tiny_checkpoint, examples, tmp_path / "whole", options, steps=6)
    whole.run()
    for stop_after in (1, 2, 3):
        parts = Harness(tiny_checkpoint, examples, tmp_path / f"parts-{stop_after}", options, steps=6)
        parts.run(stop_after=stop_after)
        again = Harness(tiny_checkpoint, examples, tmp_path / f"parts-{stop_after}", options, steps=6)
        again.run(resume=True)
        records = (*parts.records, *again.records)
        assert [(r.step, r.loss) for r in records] == [(r.step, r.loss) for r in whole.records]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("rank", [0, 3])
def test_the_chunked_loss_equals_the_plain_one(tied: bool, learns: bool, rank: int) -> None:
    paddle.seed(0)
    hidden = paddle.randn([70, 64])
    weight = paddle.randn([1000, 64] if tied else [64, 1000]) * 0.3
    targets = paddle.randint(0, 1000, [70])
    low = (paddle.randn([70, rank]), paddle.randn([rank, 1000])) if rank else None
    learning = [hidden, *([weight] if learns else []), *(low or ())]
    weight.stop_gradient = True
    for tensor in learning:
        tensor.stop_gradient = False

    def run(loss: Callable[[], paddle.Tensor]) -> list[np.ndarray]:
        value = loss() * 0.5
        value.backward()
        found = [value.numpy(), *(tensor.grad.numpy() for tensor in learning)]
        for tensor in learning:
            tensor.clear_gradient()
        return found

    def logits() -> paddle.Tensor:
        of_head = paddle.matmul(hidden, weight, transpose_y=tied)
        return of_head if low is None else of_head + low[0] @ low[1]

    plain = run(lambda: paddle.nn.functional.cross_entropy(logits(), targets, reduction="sum"))
    for chunk in (1, 16, 70, 1000):
        chunked = run(
            lambda chunk=chunk: linear_cross_entropy(hidden, weight, targets, tied=tied, chunk=chunk, low_rank=low)  # type: ignore[misc]
        )
        assert len(chunked) == len(plain)
        for got, expected in zip(chunked, plain, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
