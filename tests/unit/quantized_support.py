"""A float32 model with the numbers that a quantised one stands for, and what tests of quantised models share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from qvl.messages import Image, Message
from qvl.model.packed import PackedProjection, Projection
from qvl.model.packing import Source
from qvl.model.quantization import Quantization, Width, matrix_shapes
from qvl.model.weights import laid_out
from qvl.ops.linear import PackedLinear, unpack
from qvl.profile import Profile
from qvl.runtime.engine import Engine
from qvl.runtime.records import Sampling

GREEDY = Sampling(max_new_tokens=12)
Logits = npt.NDArray[np.float32]


def picture() -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[0:84, 0:112]
    return np.stack([x * 2, y * 3, (x // 8 + y // 8) % 2 * 255], axis=-1).astype(np.uint8)


QUESTION = [Message.of("user", Image(picture()), "What is in this picture, and where are the squares of it?")]
WORDS = [Message.of("user", "Say something.")]


def engine(folder: Path, quantize: str = "auto", *adapters: str, **settings: object) -> Engine:
    profile = Profile(model=str(folder)).revised({"quantize": quantize, **settings}, "test")
    return Engine.load(profile, device="cpu", adapters=adapters)


def dequantised(folder: Path, width: Width, *adapters: str) -> Engine:
    """The same folder in float32, each matrix replaced by what is left of it once it was quantised."""
    plain, chosen = engine(folder, "none", *adapters), Quantization.of(width)
    parameters = dict(plain.model.named_parameters())
    with Source(folder, plain.config) as source:
        for name in matrix_shapes(plain.config):
            scheme = chosen.scheme_of(name)
            assert scheme is not None
            values = unpack(source.matrix(name, scheme.packing()))
            parameters[name].set_value(laid_out(name, values))
    return plain


def difference(got: Logits, wanted: Logits) -> float:
    """The largest, in terms of the range of the logits."""
    return float(np.abs(got - wanted).max() / (wanted.max() - wanted.min()))


def cosine(got: Logits, wanted: Logits) -> float:
    return float(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted))


def packed_weights(layer: Projection) -> list[PackedLinear]:
    """The matrices of a projection, one for each of its names."""
    assert isinstance(layer, PackedProjection)
    return layer.weights if isinstance(layer.weights, list) else [layer.weights]
