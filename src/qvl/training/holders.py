"""Which process holds what of a run that several share, and how it comes together in files that are always whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import paddle

from qvl.model.config import ModelConfig
from qvl.model.part import Part


@dataclass(frozen=True)
class Holders:
    """rank: of this process among all. Those that have the parts of one model follow each other.

    of: where the optimiser's state is shared out, whose a parameter's is, by its name in the checkpoint: all parts of
    this model, counted from 0. config: needed where the model is in parts.
    """

    rank: int = 0
    of: Mapping[str, int] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    config: ModelConfig | None = None

    def has(self, name: str) -> bool:
        """Whether this process keeps the state of a parameter, of its part of it."""
        own = self.rank // self.part.size
        return self.of.get(name, own) == own

    def asks(self, name: str) -> bool:
        """Whether any process but the first has something to bring of a parameter."""
        return self.part.size > 1 or bool(self.of.get(name, 0))

    def whole_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """Of a parameter of which this part has `shape`."""
        whole = list(shape)
        if self.part.size > 1 and (cut := self.part.cut(name, self._config)) is not None:
            whole[cut.axis] = cut.whole
        return tuple(whole)

    def stretch(self, name: str) -> tuple[slice, ...]:
        """What this part has of a parameter, as an index of the whole."""
        cut = self.part.cut(name, self._config) if self.part.size > 1 else None
        if cut is None:
            return ()
        return (*[slice(None)] * cut.axis, slice(cut.start, cut.stop))

    def bring(self, name: str, tensor: paddle.Tensor | None, like: paddle.Tensor) -> paddle.Tensor | None:
        """The whole tensor of a parameter in process 0; None in all others, which have to call this in the same order.

        tensor: what this process has of it, None where it has nothing. like: of its shape and dtype. A tensor of one
        number, such as a power of beta, is the same in all parts.
        """
        sources, axis = self._sources(name, like)
        pieces = []
        for source in sources:
            piece = tensor
            if source:
                if piece is None or self.rank != source:
                    piece = paddle.zeros_like(like)
                # To all, though one is meant: with gloo, a message between two of four processes did not arrive.
                paddle.distributed.broadcast(piece, src=source)
            if self.rank == 0:
                assert piece is not None
                pieces.append(piece if len(sources) == 1 else piece.cpu())  # a device may be full
        if self.rank:
            return None
        return pieces[0] if len(pieces) == 1 else paddle.concat(pieces, axis=axis)

    def give(self, named: Iterable[tuple[str, paddle.Tensor]]) -> None:
        """Have process 0 bring these; for all others."""
        for name, tensor in named:
            self.bring(name, tensor, tensor)

    def _sources(self, name: str, like: paddle.Tensor) -> tuple[list[int], int]:
        """The processes whose stretches follow each other, and along which axis."""
        first = self.of.get(name, 0) * self.part.size
        cut = self.part.cut(name, self._config) if self.part.size > 1 and like.size > 1 else None
        if cut is None:
            return [first], 0
        return list(range(first, first + self.part.size, self.part.copies(name, self._config))), cut.axis

    @property
    def _config(self) -> ModelConfig:
        assert self.config is not None
        return self.config


ALONE = Holders()
