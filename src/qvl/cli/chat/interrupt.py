"""Ctrl-C while an answer is given: it ends between two tokens, or at once where that takes too long."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopper:
    """Before the first word Ctrl-C breaks in at once; after it, it asks for the end of the answer.

    A second Ctrl-C breaks in anyway. Nothing is lost by that but the token in the making.
    """

    def __init__(self) -> None:
        self.begun = False
        self.stopped = False

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        if not self.begun or self.stopped:
            signal.default_int_handler(number, frame)
        self.stopped = True


@contextmanager
def stopping() -> Iterator[Stopper]:
    """Let Ctrl-C go to a Stopper, and to whoever had it before when the answer is over."""
    stopper = Stopper()
    if threading.current_thread() is not threading.main_thread():
        yield stopper
        return
    before = signal.signal(signal.SIGINT, stopper._pressed)
    try:
        yield stopper
    finally:
        signal.signal(signal.SIGINT, before)
