"""Ids, labels, loss and gradients of the training cases against PyTorch's. The model only, without the trainer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import paddle
import paddle.nn.functional as F
import pytest

from qvl.model.config import ModelConfig
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.weights import load_model
from qvl.processing.processor import IGNORED, Processor
from qvl.processing.prompt import Example
from qvl.processing.tokenizer import Tokenizer
from qvl.runtime.decode import encode_vision, prompt_inputs
from tests.conftest import CheckpointOf
from tests.golden.cases import Case
from tests.golden.training_cases import EMBEDDING, HEAD, LANGUAGE, RECIPE, TRAINING_CASES, VISION, sample
from tests.training.support import load_training_case, stored_layout, training_messages

each_case = pytest.mark.parametrize("case", TRAINING_CASES, ids=lambda case: case.name)


def example_of(case: Case, checkpoint_variant: CheckpointOf) -> Example:
    folder = checkpoint_variant(case.checkpoints[0])
    processor = Processor(ModelConfig.from_folder(folder), Tokenizer.from_folder(folder))
    return processor.example(training_messages(case))


def token_losses(model: Qwen2VL, example: Example) -> paddle.Tensor:
    """The losses of the supervised tokens, [supervised]."""
    inputs = prompt_inputs(model.config, example.prompt, encode_vision(model, example.prompt), last_only=False)
    labels = paddle.to_tensor(example.labels[1:])
    losses = F.cross_entropy(model(inputs)[:-1], labels, reduction="none", ignore_index=IGNORED).flatten()
    return losses[labels != IGNORED]


@each_case
def test_ids_and_labels(case: Case, checkpoint_variant: CheckpointOf) -> None:
    wanted, example = load_training_case(case.name), example_of(case, checkpoint_variant)
    np.testing.assert_array_equal(example.prompt.input_ids, wanted["input_ids"])
    np.testing.assert_array_equal(example.labels, wanted["labels"])
    assert np.count_nonzero(example.labels[1:] != IGNORED) == wanted["supervised"]


@each_case
def test_loss_and_gradients(case: Case, checkpoint_variant: CheckpointOf) -> None:
    wanted, example = load_training_case(case.name), example_of(case, checkpoint_variant)
    folder = checkpoint_variant(case.checkpoints[0])
    model = load_model(folder, ModelConfig.from_folder(folder))
    for parameter in model.parameters():
        parameter.stop_gradient = False

    loss = token_losses(model, example).mean()
    loss.backward()

    assert float(loss) == pytest.approx(float(wanted["loss"]), abs=1e-4)
    parameters = dict(model.named_parameters())
    names = (*LANGUAGE, EMBEDDING, *(VISION if example.prompt.visions else ()), *((HEAD,) if model.lm_head else ()))
    assert {f"grad.{name}" for name in names} == {key for key in wanted if key.startswith("grad.")}
    for name in names:
        gradient = stored_layout(model, name, parameters[name].grad)
        kept = gradient[wanted["embedding_rows"]] if name == EMBEDDING else sample(gradient)
        check_gradient(name, gradient, kept, wanted)


def check_gradient(
    name: str, gradient: npt.NDArray[Any], kept: npt.NDArray[Any], wanted: dict[str, npt.NDArray[Any]]
) -> None:
    """Its norm, and the distance of the part that was kept, to a thousandth of the norm."""
    norm = float(wanted[f"grad_norm.{name}"])
    assert kept.shape == wanted[f"grad.{name}"].shape, name
    assert float(np.linalg.norm(gradient.astype(np.float64))) == pytest.approx(norm, rel=1e-3), name
    assert float(np.linalg.norm(kept - wanted[f"grad.{name}"])) <= 1e-3 * norm, name


def test_first_loss_of_the_steps(checkpoint_variant: CheckpointOf) -> None:
    """The trainer's own test takes the steps; here only that they start from the cases they say."""
    folder = checkpoint_variant(RECIPE.checkpoint)
    model = load_model(folder, ModelConfig.from_folder(folder))
    cases = [case for case in TRAINING_CASES if case.name in RECIPE.cases]
    losses = paddle.concat([token_losses(model, example_of(case, checkpoint_variant)) for case in cases])
    wanted = load_training_case("adamw")
    assert losses.shape[0] == wanted["supervised"]
    assert float(losses.mean()) == pytest.approx(float(wanted["loss"][0]), abs=1e-4)
