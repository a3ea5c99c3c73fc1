"""The real program behind a pseudo-terminal: type, wait for what it shows, and read the screen."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.screen import Screen

# Seconds. A machine may be many times slower than the one this was written on.
PATIENCE = 180.0
_WIDTH = 100
_PROMPT = re.compile(r"(\[\d+ attached\] )?>( |$)")
_READS = "\x1b[?2004h"  # what prompt_toolkit writes when it begins to read a line


class Terminal:
    """`qvl ARGUMENTS` with its three streams on a terminal. Ends the program on exit."""

    def __init__(self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], height: int = 30) -> None:
        self.raw = ""
        self.screen = Screen(_WIDTH, height)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rest = ""
        self._row = self._typed = 0  # where on the screen, and in `raw`, the last line was typed
        self._code: int | None = None
        variables = {**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        for name in ("NO_COLOR", "EDITOR", "VISUAL", "DISPLAY", "WAYLAND_DISPLAY", "COLUMNS", "LINES"):
            if name not in environment:
                variables.pop(name, None)
        size = struct.pack("HHHH", height, _WIDTH, 0, 0)
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:  # the child
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, size)
                os.chdir(cwd)
                os.execve(sys.executable, [sys.executable, "-m", "qvl.cli", *arguments], variables)
            finally:
                os._exit(127)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)

    @property
    def shown(self) -> str:
        """What the terminal shows from the last typed line on."""
        return "\n".join(self.screen.text[self._row :])

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def line(self, text: str) -> None:
        """Type a line and press Enter, without waiting for what comes of it."""
        self._row, self._typed = self.screen.row, len(self.raw)
        self.type(f"{text}\r")

    def say(self, text: str) -> str:
        """Type a line, wait until the next can be typed, and return what was shown in between."""
        self.line(text)
        return self.prompt()

    def prompt(self) -> str:
        """Wait until a line can be typed; what was shown before it."""
        self._until(self._reads_line, "a prompt")
        return "\n".join(self.screen.text[self._row : self.screen.row])

    def wait(self, pattern: str) -> str:
        """Wait until what is shown from the last typed line on matches."""
        self._until(lambda: re.search(pattern, self.shown) is not None, repr(pattern))
        return self.shown

    def end(self) -> int:
        """Wait for the program to leave; its exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"the program did not end; shown was:\n{self.shown}"
        _, status = os.waitpid(self.pid, 0)
        self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def _reads_line(self) -> bool:
        line = self.screen.lines[self.screen.row]
        return _READS in self.raw[self._typed :] and _PROMPT.match(line) is not None

    def _until(self, reached: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self._read(deadline), f"waited for {what}; shown was:\n" + "\n".join(self.screen.text)

    def _read(self, deadline: float) -> bool:
        """Take in what was written; False when there will be no more or it takes too long."""
        ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # Linux says so when the program has closed its end
            return False
        text = self._decoder.decode(data)
        self.raw += text
        self._rest = self.screen.feed(self._rest + text)
        return bool(data)
