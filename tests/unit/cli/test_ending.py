"""A command that is told to end takes its unfinished files along."""

from __future__ import annotations

import os
import signal

import pytest

from qvl.cli.ending import cleaning_up


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_unwinds_and_is_the_shells_afterwards(name: str) -> None:
    number = getattr(signal, name)
    before, cleaned = signal.getsignal(number), False
    with pytest.raises(SystemExit) as ended, cleaning_up():
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned = True
    assert cleaned and ended.value.code == 128 + number
    assert signal.getsignal(number) == before


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cleaning_up():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
