"""Sides take turns, each a process of its own, and what goes wrong with one is said in a line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qvl import machine
from qvl.bench.records import Row, Watcher
from qvl.bench.run import Asked, run
from qvl.bench.side import SideError, SideProcess, Spec
from qvl.errors import DeviceError, MemoryLimitError, QvlError, UsageError

FAKE = Path(__file__).with_name("fake_peer.py")
ASKED = Asked(None, "1", new_tokens=4, contexts=(16, 2000), batches=(1, 2), repeats=2, warmup=1)


def fake(name: str, log: Path, **environment: str) -> Spec:
    variables = {"FAKE_PEER_LOG": str(log), "FAKE_PEER_NAME": name, **environment}
    return Spec(name, [sys.executable, str(FAKE)], hello={"threads": 1}, load={}, environment=variables)


def memory(monkeypatch: pytest.MonkeyPatch, *, free: int) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda: free)
    monkeypatch.setattr(machine, "memory_size", lambda: 16 << 30)


def silent(notes: list[str] | None = None) -> Watcher:
    told: list[str] = [] if notes is None else notes
    return Watcher(lambda _: None, told.append, told.append)


def lives(log: Path) -> list[tuple[str, list[str]]]:
    """Each process in the order of starting, with what it was asked."""
    found: dict[tuple[str, str], list[str]] = {}
    for line in log.read_text().splitlines():
        name, process, do = line.split()
        found.setdefault((name, process), []).append(do)
    return [(name, asked) for (name, _), asked in found.items()]


BORN = ["hello", "load", "question"]
TURN = ["question", *["decode"] * 2]  # of the two contexts; it takes one answer at a time only


def test_two_that_fit_stay_and_are_asked_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, notes = tmp_path / "log", []
    memory(monkeypatch, free=8 << 30)
    outcome = run([fake("one", log), fake("two", log)], ASKED, silent(notes))
    assert outcome.turns == "kept" and "stay in memory" in notes[0]
    # Two lives each for the load, then one that stays: a warm-up, two turns, the last look at the memory.
    long = [*BORN, *TURN, *TURN, *TURN, "memory"]
    short = [*BORN, "memory"]
    assert lives(log) == [("one", short), ("two", short), ("one", short), ("two", short), ("one", long), ("two", long)]
    asked = [line.split()[0] for line in log.read_text().splitlines() if line.endswith("question")]
    assert asked == ["one", "two"] * 6


def test_two_that_do_not_fit_are_started_for_each_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, notes = tmp_path / "log", []
    memory(monkeypatch, free=6 << 30)  # what both take, and nothing to spare
    outcome = run([fake("one", log), fake("two", log)], ASKED, silent(notes))
    assert outcome.turns == "restarted" and "started anew" in notes[0]
    turn = [*BORN, *TURN, "memory"]
    assert lives(log)[4:] == [("one", turn), ("two", turn), ("one", turn), ("two", turn)]
    speeds = {row.context: row for row in outcome.rows if (row.side, row.measure, row.batch) == ("one", "decode", 1)}
    assert speeds[16].samples == (1.5, 1.5)


def test_one_alone_stays_from_its_last_load_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = run([fake("one", log)], ASKED, silent())
    assert lives(log) == [("one", [*BORN, "memory"]), ("one", [*BORN, "memory", *TURN, *TURN, *TURN, "memory"])]
    rows = {(row.measure, row.context, row.batch): row for row in outcome.rows}
    assert rows["load", None, None].samples == (0.5, 0.5)
    assert rows["answer", None, None] == Row("one", "answer", "tokens/s", (10.0, 10.0))
    assert rows["vision", None, None].samples == () and rows["vision", None, None].note == "not told apart"
    assert rows["decode", 2000, 1].note == "too long for it"
    assert rows["decode", 16, 2].note == "it answers one at a time"
    assert rows["peak_memory", None, None].samples == (float(3 << 30),) * 2
    first = rows["start_to_first_token", None, None].samples[0]
    assert first == pytest.approx(rows["start", None, None].samples[0] + 2.5)


def test_a_side_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    spec = fake("one", tmp_path / "log", FAKE_PEER_DIES_AT="load")
    with pytest.raises(SideError, match=r"one ended in the middle of 'load' with code 1: out of some resource"):
        run([spec], ASKED, silent())


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    spec = Spec("one", [str(tmp_path / "python")], hello={}, load={})
    with SideProcess(spec) as process, pytest.raises(SideError, match="cannot be run"):
        process.start()


def test_a_side_that_says_something_else() -> None:
    spec = Spec("one", [sys.executable, "-c", "print('Hello.')"], hello={}, load={})
    with SideProcess(spec) as process, pytest.raises(SideError, match=r"one said .Hello\.. where an answer"):
        process.start()


WIRE = """
import sys
sys.path.insert(0, {folder!r})
from peer_wire import serve
class Side:
    def hello(self):
        print("noise of a library")
        return {{}}
    def limit(self):
        from qvl.errors import MemoryLimitError
        raise MemoryLimitError("too large by far")
    def narrow(self):
        from qvl.ops.native import NativeOpsError
        raise NativeOpsError("none were built")
    def long(self):
        from qvl.errors import ContextLimitError
        raise ContextLimitError(9, 4, 8)
    def odd(self):
        raise ValueError("two\\nlines")
    def lacking(self):
        import a_module_that_nobody_has
serve(Side())
"""


@pytest.fixture
def wired(tmp_path: Path) -> Spec:
    import qvl.bench.peers

    script = tmp_path / "side.py"
    script.write_text(WIRE.format(folder=str(Path(qvl.bench.peers.__file__).parent)))
    return Spec(
        "it", [sys.executable, str(script)], hello={}, load={}, lacking=lambda text: QvlError(f"get it: {text}")
    )


def test_errors_cross_the_wire_and_the_side_goes_on(wired: Spec) -> None:
    with SideProcess(wired) as process:
        process.start()
        with pytest.raises(MemoryLimitError, match="too large by far"):
            process.ask("limit")
        with pytest.raises(DeviceError, match="none were built"):
            process.ask("narrow")
        with pytest.raises(UsageError, match="the prompt has 9 tokens"):
            process.ask("long")
        with pytest.raises(SideError, match=r"it: odd failed \(ValueError: two lines\)"):
            process.ask("odd")
        with pytest.raises(QvlError, match="get it: No module named 'a_module_that_nobody_has'"):
            process.ask("lacking")
        assert process.ask("hello") == {}
