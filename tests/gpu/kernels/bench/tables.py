"""A record of figures as Markdown, as docs/performance.md has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Record = dict[str, Any]
# Sides of an op's table, and what their columns are called.
_PEERS = {
    "eager": "torch",
    "compiled": "torch.compile",
    "flash": "torch's flash attention",
    "cublas": "cuBLAS, bfloat16",
}


def markdown(record: Record) -> Iterator[str]:
    """Lines. Ratios are the other's time over ours: above 1 ours is quicker."""
    facts, peaks = record["facts"], record["peaks"]
    yield (
        f"{facts['card']}, driver {facts['driver'] or '-'}, CUDA {facts['cuda'] or '-'}, torch {facts['torch']}, "
        f"{facts['date']}, {facts['commit']}. A copy moves {peaks['bandwidth'] / 1e9:.0f} GB/s, a product in bfloat16 "
        f"makes {peaks['product'] / 1e12:.0f} TFLOP/s. Microseconds are medians of graphs replayed in turns, with what "
        "a tenth of the rounds were below and above; columns of others say how many times our time theirs is. Operands "
        "take turns so that they come from memory, except small ones."
    )
    if record["steps"]:
        yield from _steps(record["steps"], peaks["bandwidth"], facts["transformers"])
    for op in dict.fromkeys(case["op"] for case in record["cases"]):
        yield from _op(op, [case for case in record["cases"] if case["op"] == op], peaks)
    if record["left_out"]:
        yield from ("", f"Left out for lack of time: {', '.join(record['left_out'])}.")


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield from ("", _row(*head), _row(*["---"] * len(head)))
    for row in rows:
        yield _row(*row)


def _time(timing: Record) -> str:
    if "reason" in timing:
        return timing["reason"].replace("|", "/")
    note = f", {timing['note']}" if timing.get("note") else ""
    return f"{timing['median']:.1f} ({timing['low']:.1f} to {timing['high']:.1f}){note}".replace("|", "/")


def ratio(ours: Record, other: Record | None) -> float | None:
    """How many times our time the other's is."""
    if other is None or "median" not in ours or "median" not in other:
        return None
    return float(other["median"] / ours["median"])


def share(case: Record, peaks: Record) -> float | None:
    """Of the bandwidth of a copy, in per cent."""
    ours = case["sides"]["ours"]
    return None if "reason" in ours else case["bytes"] / (ours["median"] / 1e6) / peaks["bandwidth"] * 100


def name(case: Record) -> str:
    return f"{case['op']} {case['model']} {case['shape']}"


def sentence(case: Record, peaks: Record) -> str:
    """A line of progress."""
    ours = case["sides"]["ours"]
    if "reason" in ours:
        return f"{name(case)}: {ours['reason']}"
    others = {side: ratio(ours, timing) for side, timing in case["sides"].items() if side != "ours"}
    told = "".join(f"; {side} {_number(times, '.2f', 'x')}" for side, times in others.items())
    return f"{name(case)}: {ours['median']:.1f} us, {share(case, peaks):.0f} % of a copy{told}"


def _op(op: str, cases: list[Record], peaks: Record) -> Iterator[str]:
    peers = [name for name in _PEERS if any(name in case["sides"] for case in cases)]
    products = any(case["flops"] for case in cases)
    head = ["", "µs", "of copy bandwidth", *(["of matrix peak"] if products else []), *(_PEERS[name] for name in peers)]
    rows = []
    for case in cases:
        ours = case["sides"]["ours"]
        cells = [f"{case['model']}, {case['shape']}", _time(ours), _number(share(case, peaks), ".0f", " %")]
        if products:
            peak = None if "reason" in ours else case["flops"] / (ours["median"] / 1e6) / peaks["product"] * 100
            cells.append(_number(peak, ".1f", " %"))
        rows.append([*cells, *(_other(ours, case["sides"].get(name)) for name in peers)])
    yield from ("", f"### {op}")
    yield from _table(head, rows)


def _other(ours: Record, other: Record | None) -> str:
    if other is not None and "reason" in other:
        return other["reason"].replace("|", "/")
    return _number(ratio(ours, other), ".2f", "x" if other is None or not other.get("note") else "x, without a graph")


def _number(value: float | None, form: str, behind: str) -> str:
    return "-" if value is None else f"{value:{form}}{behind}"


def floor(step: Record, bandwidth: float) -> float:
    """Microseconds that reading the weights of a step once takes."""
    return float(step["weight_bytes"] / bandwidth * 1e6)


def _steps(steps: list[Record], bandwidth: float, transformers: str) -> Iterator[str]:
    yield from ("", "### Decode step")
    rows = []
    for step in steps:
        cells = [f"{step['model']}, {step['side']}, batch {step['batch']}, context {step['context']}", _time(step)]
        if "weight_bytes" in step:
            least = floor(step, bandwidth)
            over = step["median"] / least if "median" in step else None
            cells += [f"{step['weight_bytes'] / 1e9:.2f} GB", f"{least:.0f}", _number(over, ".2f", "x")]
        else:
            cells += ["-"] * 3
        rows.append(cells)
    yield from _table(["", "µs", "weights", "µs to read them once", "step over that"], rows)
    if any(step["side"] == "transformers" for step in steps):
        version = f"transformers {transformers}".rstrip()
        yield from ("", f"{version}: its modules, not compiled, with a static cache, in a graph like ours.")
    detailed = [step for step in steps if step.get("parts")]
    if detailed:
        names = list(detailed[0]["parts"])
        rows = [
            [
                f"{step['model']}, {step['side']}, batch {step['batch']}",
                *(f"{step['parts'][name]:.0f}" for name in names),
            ]
            for step in detailed
        ]
        yield from ("", "All launches of a kind, by themselves, µs:")
        yield from _table(["", *names], rows)
