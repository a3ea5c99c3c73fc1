"""The training references and how our tensors compare with theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import paddle

from qvl.messages import Message
from qvl.model.checkpoint import PATCH_EMBED
from qvl.model.qwen2_vl import Qwen2VL
from qvl.model.weights import linear_weights
from qvl.processing.prompt import Example
from tests.golden import load_case
from tests.golden.cases import Case
from tests.golden.training_cases import TRAINING_CASES
from tests.parity.support import messages_of
from tests.training.data_support import processor_of


def load_training_case(name: str) -> dict[str, npt.NDArray[Any]]:
    """What PyTorch made of a case, or of the five steps of "adamw"."""
    return load_case(f"training-{name}")


def training_messages(case: Case) -> tuple[Message, ...]:
    return messages_of(case)


def training_example(name: str, folder: Path) -> Example:
    """What qvl makes of a case with the checkpoint in `folder`."""
    case = next(case for case in TRAINING_CASES if case.name == name)
    return processor_of(folder).example(training_messages(case))


def stored_layout(model: Qwen2VL, name: str, tensor: paddle.Tensor) -> npt.NDArray[Any]:
    """A parameter or its gradient as the Hugging Face file has it; the patch embedding flattened to [out, 1176]."""
    values = np.asarray(tensor.numpy())
    return values.T if name in linear_weights(model) or name == PATCH_EMBED else values
