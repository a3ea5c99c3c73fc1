"""Tokens drawn from logits, against what NumPy makes of the same rules: the same token for the same draw."""

from __future__ import annotations

from ctypes import sizeof
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.gpu.kernels.devices import Device
from tests.gpu.kernels.numerics import CODES, DTYPES, rounded
from tests.gpu.kernels.structs_sampling import SamplingParams, SamplingRule

Array = npt.NDArray[Any]
# Of one part, of two, and of several with an odd end; odd strides.
COUNTS = [(1, 8), (7, 7), (300, 304), (4096, 4096), (4099, 4099), (9003, 9008)]
LARGE = [*COUNTS, (151936, 151936), (152064, 152064)]


@dataclass(frozen=True)
class Rule:
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    penalty: float = 1.0
    uniform: float = 0.5
    seen: list[int] = field(default_factory=list)
    banned: list[int] = field(default_factory=list)


def _expected(logits: Array, rule: Rule) -> int:
    scores = logits.astype(np.float32)
    seen = [token for token in rule.seen if 0 <= token < len(scores)]
    penalty = np.float32(rule.penalty)
    scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    scores[[token for token in rule.banned if 0 <= token < len(scores)]] = -np.inf
    if np.isnan(scores).any() or not np.isfinite(scores.max()):
        return -1
    if rule.temperature == 0:
        return int(np.argmax(scores))
    scores = scores / np.float32(rule.temperature)
    left = np.flatnonzero(scores > -np.inf)
    if 0 < rule.top_k < len(left):
        left = left[scores[left] >= np.sort(scores[left])[-rule.top_k]]
    if rule.top_p < 1.0:
        ascending = left[np.argsort(scores[left], kind="stable")]
        upto = np.cumsum(_probabilities(scores[ascending]))
        left = np.sort(ascending[[*(upto[:-1] > 1.0 - rule.top_p), True]])
    if rule.min_p > 0.0:
        left = left[scores[left] >= scores.max() + np.log(np.float32(rule.min_p))]
    upto = np.cumsum(_probabilities(scores[left]))
    return int(left[min(np.searchsorted(upto, rule.uniform * upto[-1], side="right"), np.searchsorted(upto, upto[-1]))])


def _probabilities(scores: Array) -> Array:
    powers = np.exp(scores.astype(np.float64) - scores.max())
    return powers / powers.sum()


def _drawn(device: Device, dtype: str, logits: Array, rules: list[Rule], stride: int | None = None) -> list[int]:
    rows, count = logits.shape
    whole = np.full((rows, stride or count), np.float32(np.nan))
    whole[:, :count] = logits
    made, seen, banned = (SamplingRule * rows)(), [-7], [count]
    for to, rule in zip(made, rules, strict=True):
        to.seen_begin, to.banned_begin = len(seen), len(banned)
        seen, banned = seen + rule.seen, banned + rule.banned
        to.seen_end, to.banned_end = len(seen), len(banned)
        to.top_k, to.top_p, to.uniform, to.penalty = rule.top_k, rule.top_p, rule.uniform, rule.penalty
        to.greedy, to.temperature = rule.temperature == 0, rule.temperature
        with np.errstate(divide="ignore"):
            to.min_logit = np.log(np.float32(rule.min_p))
    lists = [device.put(np.array(ids, dtype=np.int64)) for ids in (seen, banned)]
    given = [device.floats(whole, dtype), device.put(np.frombuffer(bytes(made), np.uint8)), *lists]
    tokens = device.empty((rows,), "int64")
    params = SamplingParams(
        CODES[dtype], *(each.pointer for each in (*given, tokens)), None, rows, count, whole.shape[1]
    )
    workspace = device.workspace("sample", params)
    params.workspace = workspace.pointer
    device.call("sample", params)
    return [int(token) for token in tokens.numpy()]


def _random_rule(rng: np.random.Generator, count: int) -> Rule:
    def ids() -> list[int]:
        return [int(x) for x in rng.permutation(np.arange(-3, count + 3))[: rng.integers(0, count // 3 + 2)]]

    return Rule(
        temperature=float(rng.choice([0.0, 0.1, 0.7, 1.0, 1.5, 30.0], p=[0.1, 0.1, 0.2, 0.3, 0.2, 0.1])),
        top_k=int(rng.choice([0, 1, 2, 20, count // 2, count - 1, count, count + 5])),
        top_p=float(rng.choice([1.0, 0.0, 0.3, 0.8, 0.95, 0.9999])),
        min_p=float(rng.choice([0.0, 0.01, 0.2, 1.0], p=[0.6, 0.2, 0.1, 0.1])),
        penalty=float(rng.choice([1.0, 1.05, 1.3, 0.8])),
        uniform=float(rng.choice([rng.random(), 0.0, 1.0 - 2.0**-53], p=[0.8, 0.1, 0.1])),
        seen=ids(),
        banned=ids() if rng.random() < 0.5 else [],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_token_as_numpy(device: Device, dtype: str) -> None:
    """Rules of all kinds, a different one for each row; logits as models give them, and with many equal ones."""
    for count, stride in LARGE if device.real else COUNTS:
        rng = np.random.default_rng(count)
        rules = [_random_rule(rng, count) for _ in range(24)]
        logits = 4 * rng.normal(size=(24, count))
        logits[16:] = np.round(logits[16:] * 2) / 2
        logits[20:] += 100.0
        logits = rounded(logits, dtype)
        expected = [_expected(row, rule) for row, rule in zip(logits, rules, strict=True)]
        for row, (drawn, token) in enumerate(zip(_drawn(device, dtype, logits, rules, stride), expected, strict=True)):
            assert drawn == token, (count, row, rules[row].__dict__ | {"seen": [], "banned": []})


def _one(device: Device, logits: list[float] | Array, **rule: Any) -> int:
    row = np.array([logits], dtype=np.float32)
    drawn = _drawn(device, "float32", row, [Rule(**rule)])[0]
    assert drawn == _expected(row[0], Rule(**rule))
    return drawn


def test_tokens_as_likely_as_the_last_of_top_k_stay(device: Device) -> None:
    for uniform, token in ((0.0, 0), (0.45, 2), (0.9, 3)):
        assert _one(device, [2.0, 1.0, 2.0, 2.0], top_k=2, uniform=uniform) == token


def test_of_equals_top_p_keeps_the_last(device: Device) -> None:
    """Half of four, in two parts of the row: none of the first two."""
    logits = np.full(9000, -np.inf)
    logits[[5, 1000, 5000, 8999]] = 1.5
    for uniform, token in ((0.0, 5000), (0.49, 5000), (0.51, 8999)):
        assert _one(device, logits, top_p=0.5, uniform=uniform) == token
    assert _one(device, logits, top_p=0.0, uniform=0.0) == 8999
    assert _one(device, logits, top_p=0.51, uniform=0.0) == 1000


def test_a_row_of_equals(device: Device) -> None:
    for top_k, top_p in ((0, 1.0), (0, 0.4), (10, 0.4), (10, 1.0)):
        for uniform in (0.0, 0.30005, 0.99905, 1.0):
            _one(device, np.zeros(5000), top_k=top_k, top_p=top_p, uniform=uniform)


def test_zeros_of_both_signs_are_equal(device: Device) -> None:
    assert _one(device, [-1.0, -0.0, 0.0], temperature=0.0) == 1
    assert _one(device, [-1.0, 0.0, -0.0, -1.0], top_k=1, uniform=0.9) == 2
    assert _one(device, [-1.0, -0.0, 0.0, -1.0], top_p=0.3, uniform=0.0) == 2


def test_penalty_and_ban(device: Device) -> None:
    assert _one(device, [2.0, 1.5, -1.0], temperature=0.0, penalty=1.5, seen=[0, 99, -1]) == 1
    assert _one(device, [-1.0, -1.2, -9.0], temperature=0.0, penalty=1.5, seen=[0]) == 1
    assert _one(device, [2.0, 1.5, 1.0], temperature=0.0, penalty=1.5, seen=[0, 1], banned=[2, 3, -1]) == 0
    # A token that is not a number may be banned.
    assert _one(device, [np.nan, 1.5, 1.0], temperature=0.0, banned=[0]) == 1


def test_no_token_where_nothing_is_a_number(device: Device) -> None:
    for temperature in (0.0, 0.8):
        rule = {"temperature": temperature, "top_k": 2, "top_p": 0.9}
        assert _one(device, [-np.inf] * 5, **rule) == -1
        assert _one(device, [1.0, 2.0], banned=[0, 1], **rule) == -1
        assert _one(device, [1.0, np.nan, 2.0], **rule) == -1
        assert _one(device, [1.0, -np.nan, 2.0], **rule) == -1
        assert _one(device, [1.0, np.inf, 2.0], **rule) == -1
        assert _one(device, [1.0, -np.inf, 2.0], **rule) in (0, 2)


def test_draws_follow_the_probabilities(device: Device) -> None:
    """Every bound between two tokens, from both sides, as near as the header says."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=200).astype(np.float32) * 3
    upto = np.cumsum(_probabilities(logits))
    rules = [Rule(uniform=u) for bound in upto[:-1] for u in (bound - 6e-12, bound + 6e-12)]
    drawn = _drawn(device, "float32", np.tile(logits, (len(rules), 1)), rules)
    expected = [int(np.searchsorted(upto, rule.uniform, side="right")) for rule in rules]
    assert drawn == expected and len(set(drawn)) > 190


def test_very_low_temperatures_are_greedy(device: Device) -> None:
    logits = np.array([[1e30, 3.0, 2e30, -5.0]], dtype=np.float32)
    for temperature in (1e-3, 1e-9):
        assert _drawn(device, "float32", logits, [Rule(temperature=temperature, top_k=3, top_p=0.9)])[0] in (0, 2)
    assert _one(device, [1.0, 1.1, 0.9], temperature=1e-4, uniform=0.999) == 1


def test_rows_do_not_touch_each_other(device: Device) -> None:
    rng = np.random.default_rng(5)
    logits = rounded(4 * rng.normal(size=(6, 4200)), "bfloat16")
    rules = [_random_rule(rng, 4200) for _ in logits]
    together = _drawn(device, "bfloat16", logits, rules)
    alone = [_drawn(device, "bfloat16", logits[row : row + 1], [rule])[0] for row, rule in enumerate(rules)]
    with device.other_order():
        assert _drawn(device, "bfloat16", logits, rules) == together == alone


def test_sizes(device: Device) -> None:
    assert sizeof(SamplingRule) == 72
    empty = SamplingParams(dtype=CODES["bfloat16"], rows=0, count=8)
    assert device.status("sample", empty) == "ok" and device.workspace("sample", empty) is None
    assert device.status("sample", SamplingParams(dtype=CODES["int8"], rows=1, count=8)) == "unsupported"
    assert device.status("sample", SamplingParams(dtype=0, rows=1, count=1 << 20)) == "unsupported"
