"""How many tokens to draft: as many as pay, by how often drafts were right and what a longer step costs."""

from __future__ import annotations

from collections.abc import Sequence

from qvl.runtime.records import Sampling

_LENGTHS = (2, 4, 8, 16)
# How much of what earlier drafts taught is left after each new one.
_MEMORY = 0.9
# A step takes its own time and whatever else the machine does meanwhile, so the fastest counts; but it may rise by this
# with every step measured, since contexts grow.
_RISE = 1.02
# How much longer a step is assumed to take for each further token, before it was measured.
_NOMINAL = 0.03
# What a draft has to promise to be made: there is work beside the step itself.
_WORTH = 1.05
# After so many steps without a draft one is made all the same, since texts change and first figures may be wrong.
_PROBE = 32


class StepCosts:
    """How long a step takes by its number of tokens, measured as answers are made. One belongs to one model."""

    def __init__(self) -> None:
        self._seconds: dict[int, float | None] = {}

    def record(self, tokens: int, seconds: float) -> None:
        """Count a step. The first of its size is left out: it pays for memory and kernels being set up."""
        if tokens not in self._seconds:
            self._seconds[tokens] = None
            return
        before = self._seconds[tokens]
        self._seconds[tokens] = seconds if before is None else min(seconds, _RISE * before)

    def ratio(self, base: int, tokens: int) -> float:
        """How much longer a step of `tokens` takes than one of `base`, which are fewer."""
        first = self._seconds.get(base)
        if first is None:
            return 1 + _NOMINAL * (tokens - base)
        return max(1.0, self._estimate(tokens, base, first) / first)

    def _estimate(self, tokens: int, base: int, first: float) -> float:
        """Between the measured sizes around, on a line; beyond them, from the largest one."""
        known = sorted((n, s) for n, s in self._seconds.items() if s is not None and n > base)
        below, above = (base, first), None
        for size, seconds in known:
            if size <= tokens:
                below = (size, seconds)
            else:
                above = (size, seconds)
                break
        if above is None:
            return below[1] * (1 + _NOMINAL * (tokens - below[0]))
        return below[1] + (above[1] - below[1]) * (tokens - below[0]) / (above[0] - below[0])


class Speculation:
    """The choice for one answer."""

    def __init__(self, sampling: Sampling, costs: StepCosts) -> None:
        self._mode = sampling.speculate if sampling.greedy or sampling.speculate == "on" else "off"
        self._costs = costs
        self._right = self._wrong = 0.0
        self._idle = 0

    @property
    def off(self) -> bool:
        """Whether no draft will ever be made."""
        return self._mode == "off"

    def length(self, rows: int) -> int:
        """How many tokens to draft for a step that this answer takes with `rows` - 1 others; 0: none."""
        if self.off:
            return 0
        # "on" leaves the clock out of it, so that two runs make the same drafts.
        costs = [self._costs.ratio(rows, rows + n) if self._mode == "auto" else 1 + _NOMINAL * n for n in _LENGTHS]
        gain, length = max(zip(self._gains(rows, costs), _LENGTHS, strict=True))
        if self._mode == "on" or gain > _WORTH or self._idle >= _PROBE:
            return length
        self._idle += 1
        return 0

    def record(self, drafted: int, accepted: int) -> None:
        """Count what became of a draft."""
        self._idle = 0
        self._right = _MEMORY * self._right + accepted
        self._wrong = _MEMORY * self._wrong + (accepted < drafted)

    def _gains(self, rows: int, costs: Sequence[float]) -> list[float]:
        """Tokens for the time, with a draft against without. The tokens of a draft are taken to be right alike."""
        rate = (self._right + 1) / (self._right + self._wrong + 2)
        drawn = [(1 - rate ** (n + 1)) / (1 - rate) for n in _LENGTHS]
        return [(rows - 1 + tokens) / rows / cost for tokens, cost in zip(drawn, costs, strict=True)]
