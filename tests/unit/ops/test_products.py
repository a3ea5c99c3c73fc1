"""Products of training in bfloat16: what is rounded, what learns from them, and where they are done."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import paddle
import pytest

from qvl import ops
from qvl.errors import DeviceError
from qvl.model.device import Placement
from qvl.ops import native
from qvl.profile_training import TrainingOptions
from qvl.training.arithmetic import products
from tests.unit.ops.levels import normal
from tests.unit.ops.slopes import learning

with native.using("auto") as _module:
    UNITS: list[str] = [] if _module is None else [n for n in ("avx512bf16", "amx") if n in _module.levels()]
# Sums of up to some hundred float32 products in another order.
EXACT = 1e-5
SIZES = [(1, 1, 1), (16, 32, 16), (37, 45, 19), (130, 200, 97), (515, 33, 64)]

Floats = npt.NDArray[np.float32]


@pytest.fixture(
    params=UNITS
    or [pytest.param("none", marks=pytest.mark.skip(reason="no unit for bfloat16 here, or there are no native ops"))]
)
def unit(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each unit for such products that this CPU has, in turn: pairs in vectors, and tiles."""
    with native.using("native", level=request.param):
        yield request.param


def rounded(x: paddle.Tensor) -> Floats:
    return x.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)


def close(found: paddle.Tensor, wanted: Floats) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=EXACT, atol=EXACT * max(1.0, float(np.abs(wanted).max())))


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_operands_are_rounded_and_nothing_else(m: int, k: int, n: int) -> None:
    x, weight, bias = normal(m, k), normal(k, n, seed=1), normal(n, seed=2)
    with ops.rounding():
        close(ops.learning_linear(x, weight, bias), rounded(x) @ rounded(weight) + bias.numpy())
        close(ops.learning_linear(x, weight), rounded(x) @ rounded(weight))


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize(("m", "k", "n"), SIZES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_gradients_are_those_of_rounded_operands(m: int, k: int, n: int, with_bias: bool) -> None:
    given = learning(normal(m, k), normal(k, n, seed=1), *([normal(n, seed=2)] if with_bias else []))
    slope = normal(m, n, seed=3)
    with ops.rounding():
        ops.learning_linear(*given).backward(slope)
    x, weight, *bias = given
    close(x.grad, rounded(slope) @ rounded(weight).T)
    close(weight.grad, rounded(x).T @ rounded(slope))
    if bias:
        close(bias[0].grad, slope.numpy().sum(axis=0))


def test_any_number_of_threads_gives_the_same_bits(unit: str) -> None:
    x, weight = normal(600, 300), normal(300, 200, seed=1)
    results = []
    for threads in (1, 2, 3):
        with native.using("native", level=unit, threads=threads), ops.rounding():
            results.append(ops.learning_linear(x, weight).numpy())
    assert all((result == results[0]).all() for result in results)


@pytest.mark.usefixtures("unit")
def test_what_does_not_learn_gets_no_gradient() -> None:
    x, weight = normal(20, 10), normal(10, 5, seed=1)
    weight.stop_gradient = False
    with ops.rounding():
        ops.learning_linear(x, weight).sum().backward()
    assert x.grad is None and weight.grad is not None


def test_outside_of_the_block_nothing_is_rounded() -> None:
    x, weight = normal(40, 64), normal(64, 30, seed=1)
    with ops.rounding():
        pass
    with ops.rounding(False):
        close(ops.learning_linear(x, weight), x.numpy() @ weight.numpy())
    close(ops.learning_linear(x, weight), x.numpy() @ weight.numpy())


@pytest.mark.usefixtures("unit")
def test_operands_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="product: b has shape"):
        native.library().product(normal(4, 5), normal(6, 7))


CPU = Placement("cpu", "float32", "auto")


@pytest.mark.usefixtures("unit")
@pytest.mark.parametrize(("asked", "rounds"), [("float32", False), ("auto", True), ("bfloat16", True)])
def test_a_run_rounds_as_it_was_asked_to(asked: str, rounds: bool) -> None:
    x, weight = normal(40, 64), normal(64, 30, seed=1)
    with products(TrainingOptions(products=asked), CPU):  # type: ignore[arg-type]
        found = ops.learning_linear(x, weight)
    close(found, rounded(x) @ rounded(weight) if rounds else x.numpy() @ weight.numpy())


def test_without_a_body_a_wish_is_refused_and_auto_says_so() -> None:
    with native.using("composed"):
        with pytest.raises(
            DeviceError, match="products=bfloat16: it takes native ops and a CPU with AVX512-BF16 or AMX"
        ):
            products(TrainingOptions(products="bfloat16"), CPU)
        with pytest.warns(UserWarning, match="takes longer: it takes native ops"):
            context = products(TrainingOptions(products="auto"), CPU)
        with context:
            x, weight = normal(40, 64), normal(64, 30, seed=1)
            close(ops.learning_linear(x, weight), x.numpy() @ weight.numpy())
    with pytest.raises(DeviceError, match="it is for float32 on a CPU, not bfloat16 on gpu:0"):
        products(TrainingOptions(products="bfloat16"), Placement("gpu:0", "bfloat16", "auto"))
