"""Large matrices shared out among processes that see different samples: sharding of stages 2 and 3.

Each process keeps a stretch of the rows of every large matrix of the language model, its gradient and the optimiser's
state of it. In stage 3 the rest of a layer's weights is fetched where the layer runs and dropped behind it, in stage 2
it is fetched once an update and stays. Gradients go to whoever keeps the rows as soon as they are there, so none has
those of the whole model. This is ZeRO (https://arxiv.org/abs/1910.02054) by stretches of parameters.

Norms, biases, factors of LoRA, the vision tower and matrices whose rows cannot be shared out evenly are whole in every
process: processes whose samples have no picture do not run the tower, and would not be there to exchange its weights.

Paddle's own stages 2 and 3 run on GPUs alone and keep files of their own; these run between any processes, and what
they write is whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer

from qvl.model.config import ModelConfig
from qvl.model.part import Cut, Part
from qvl.model.qwen2_vl import Qwen2VL
from qvl.profile_training import TrainingOptions


def own_stage(options: TrainingOptions) -> int:
    """2 or 3 where matrices are shared out as described here, else 0.

    Stage 2 has nothing to do where no matrix of the language model learns: that is stage 1, as with LoRA.
    """
    learns = options.method == "full" and "language" in options.train
    return {"stage2": 2 if learns else 0, "stage3": 3}.get(options.sharding, 0)


def shared_rows(shapes: Mapping[str, Sequence[int]], size: int) -> dict[str, int]:
    """The rows of the matrices that so many processes share out, of all parameters of a model."""
    return {
        name: shape[0]
        for name, shape in shapes.items()
        if not name.startswith("visual.") and len(shape) == 2 and shape[0] % size == 0
    }


def fetched_at_once(shapes: Mapping[str, Sequence[int]], rows: Mapping[str, int]) -> int:
    """Numbers that stage 3 fetches for the largest layer, the embedding and the head, which are whole beside it."""
    layers: dict[str, int] = {}
    for name in rows:
        key = ".".join(name.split(".")[:3]) if name.startswith("model.layers.") else ""
        layers[key] = layers.get(key, 0) + math.prod(shapes[name])
    return layers.pop("", 0) + max(layers.values(), default=0)


@dataclass(frozen=True)
class Shards(Part):
    """What process `rank` of `size` keeps of each parameter.

    rows: how many rows the matrices have that are shared out, by their names in the checkpoint.
    """

    rows: Mapping[str, int] = field(default_factory=dict)

    def cut(self, name: str, config: ModelConfig) -> Cut | None:  # noqa: ARG002
        """None for what every process keeps whole."""
        count = self.rows.get(name)
        if count is None:
            return None
        each = count // self.size
        return Cut(0, self.rank * each, (self.rank + 1) * each, count)

    def copies(self, name: str, config: ModelConfig) -> int:  # noqa: ARG002
        return 1 if name in self.rows else self.size

    def is_partly_learnt(self, name: str, config: ModelConfig) -> bool:  # noqa: ARG002
        return False

    def gathered(self, shard: paddle.Tensor) -> paddle.Tensor:
        """The stretches of all processes together: [rows / size, ...] -> [rows, ...]."""
        whole = paddle.empty([shard.shape[0] * self.size, *shard.shape[1:]], shard.dtype)
        paddle.distributed.stream.all_gather(whole, shard)
        return whole

    def mean_of_own(self, gradient: paddle.Tensor) -> paddle.Tensor:
        """Of gradients of a whole matrix, the mean over all processes, as much of it as this one keeps.

        Summed in float32: a sum of 16-bit numbers would lose what many processes have in common.
        """
        total = gradient.clone() if gradient.dtype == paddle.float32 else gradient.astype("float32")
        each = gradient.shape[0] // self.size
        if paddle.device.get_device() == "cpu":  # gloo does not share out what it sums
            paddle.distributed.all_reduce(total)
            own = total[self.rank * each : (self.rank + 1) * each]
        else:
            own = paddle.empty([each, *gradient.shape[1:]], "float32")
            paddle.distributed.stream.reduce_scatter(own, total)
        return (own / self.size).astype(gradient.dtype)


class _Whole(PyLayer):
    """Forward the whole matrix; backward the mean gradient of the rows that are kept here.

    whole: gives the matrix. Handed over as it is, Paddle would take a result that shares its memory for an op in place.
    """

    @staticmethod
    def forward(
        ctx: Any, shard: paddle.Tensor, shards: Shards, whole: Callable[[paddle.Tensor], paddle.Tensor]
    ) -> paddle.Tensor:
        ctx.shards = shards
        return whole(shard)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return ctx.shards.mean_of_own(grad)


class Sharding:
    """A model whose large matrices are shared out. keeps: stage 2, which leaves them whole between updates."""

    def __init__(self, model: Qwen2VL, shards: Shards, keeps: bool) -> None:
        self.shards, self._model = shards, model
        self._kept: dict[str, paddle.Tensor] | None = {} if keeps else None

    def install(self) -> None:
        """Have the layers, which may have got LoRA by now, fetch what they lack when they run."""
        for number, layer in enumerate(self._model.model.layers):
            layer.forward = self._around(layer.forward, self._own_matrices(layer, f"model.layers.{number}."))

    def ends(self) -> AbstractContextManager[None]:
        """A context in which the embedding and the head, which no decoder layer has, are whole."""
        model = self._model
        owners = {"model.embed_tokens.weight": model.model.embed_tokens, "lm_head.weight": model.lm_head}
        return self._fetched({name: layer for name, layer in owners.items() if name in self.shards.rows})

    def refresh(self) -> None:
        """Fetch what stays whole, after the weights have changed."""
        if self._kept is None:
            return
        parameters = dict(self._model.named_parameters())
        for name in self.shards.rows:
            if name in self._kept:
                paddle.distributed.stream.all_gather(self._kept[name], parameters[name])
            else:
                self._kept[name] = self.shards.gathered(parameters[name])

    def _own_matrices(self, layer: nn.Layer, prefix: str) -> dict[str, nn.Layer]:
        named = ((f"{prefix}{path}.weight", part) for path, part in layer.named_sublayers())
        return {name: part for name, part in named if name in self.shards.rows}

    def _around(self, forward: Callable[..., Any], matrices: Mapping[str, nn.Layer]) -> Callable[..., Any]:
        def whole(*arguments: Any, **named: Any) -> Any:
            with self._fetched(matrices):
                return forward(*arguments, **named)

        return whole

    @contextmanager
    def _fetched(self, matrices: Mapping[str, nn.Layer]) -> Iterator[None]:
        shards = {name: layer._parameters["weight"] for name, layer in matrices.items()}
        try:
            for name, layer in matrices.items():
                layer._parameters["weight"] = self._whole(name, shards[name])
            yield
        finally:
            for name, layer in matrices.items():
                layer._parameters["weight"] = shards[name]

    def _whole(self, name: str, shard: paddle.Tensor) -> paddle.Tensor:
        whole: Callable[[paddle.Tensor], paddle.Tensor] = self.shards.gathered
        if self._kept is not None:
            kept = self._kept[name].detach()
            whole = lambda _: kept  # noqa: E731
        if shard.stop_gradient or not paddle.is_grad_enabled():
            return whole(shard)
        return _Whole.apply(shard, self.shards, whole)


def share_out(model: Qwen2VL, stage: int, rank: int, size: int) -> Sharding:
    """Leave a model that has no memory yet with this process's stretches of its large matrices.

    What is filled in and saved from then on are stretches: `model.held` says which.
    """
    owners: dict[str, nn.Layer] = dict(model.named_sublayers())
    rows = shared_rows({name: parameter.shape for name, parameter in model.named_parameters()}, size)
    for name, count in rows.items():
        owner = owners[name.removesuffix(".weight")]
        dtype = owner.weight.dtype
        with paddle.LazyGuard():
            owner.weight = owner.create_parameter([count // size, owner.weight.shape[1]], dtype=dtype)
        owner.weight.stop_gradient = True
    model.held = Shards(rank, size, rows=rows)
    return Sharding(model, model.held, keeps=stage == 2)


@contextmanager
def whole_shapes(model: Qwen2VL) -> Iterator[None]:
    """Give matrices their whole shapes, without memory, to code that puts layers of LoRA in the place of others.

    At the end the layers that then have their names get the stretches back.
    """
    rows = model.held.rows if isinstance(model.held, Shards) else {}
    paths = {name: name.removesuffix(".weight") for name in rows}
    owners = dict(model.named_sublayers())
    shards = {name: owners[path].weight for name, path in paths.items()}
    for name, path in paths.items():
        shape = [rows[name], shards[name].shape[1]]
        with paddle.LazyGuard():
            owners[path].weight = owners[path].create_parameter(shape, dtype=shards[name].dtype)
        owners[path].weight.stop_gradient = shards[name].stop_gradient
    try:
        yield
    finally:
        owners = dict(model.named_sublayers())
        for name, path in paths.items():
            shards[name].stop_gradient = owners[path].weight.stop_gradient
            owners[path].weight = shards[name]


def average(learning: Mapping[str, paddle.Tensor], shards: Shards) -> None:
    """Bring the gradients together that every process has whole, in place: their mean."""
    from paddle.distributed.fleet.utils.hybrid_parallel_util import fused_allreduce_gradients

    fused_allreduce_gradients([parameter for name, parameter in learning.items() if name not in shards.rows], None)
