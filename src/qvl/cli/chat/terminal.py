"""The front end for a terminal: line editing by prompt_toolkit, answers as Markdown by rich."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qvl.cli import render
from qvl.cli.chat.completion import offers
from qvl.cli.chat.editor import command, edited
from qvl.cli.chat.history import KeptHistory, history_file
from qvl.cli.chat.interrupt import Stopper, stopping
from qvl.cli.chat.live import LiveMarkdown
from qvl.cli.chat.model import profile_names
from qvl.cli.chat.plain import is_open
from qvl.cli.chat.talk import Chat
from qvl.cli.chat.view import Rows, Sink

_PROMPT = "> "


class TerminalSink:
    """An answer drawn as it grows."""

    def __init__(self, stopper: Stopper, begun: Callable[[], None], live: LiveMarkdown) -> None:
        self._stopper = stopper
        self._begun = begun
        self._live = live

    @property
    def stopped(self) -> bool:
        return self._stopper.stopped

    def write(self, text: str) -> None:
        if not self._stopper.begun:
            self._begun()
            self._live.start()
            self._stopper.begun = True
        self._live.write(text)


class TerminalView:
    """`View` with colours, where the terminal has any."""

    def __init__(self, quiet: bool, keeps_history: bool) -> None:
        self.quiet = quiet
        self._out = Console(file=sys.stdout, highlight=False)
        self._err = Console(stderr=True, highlight=False)
        path = history_file() if keeps_history else None
        history: History = InMemoryHistory() if path is None else KeptHistory(path)
        self._lines: PromptSession[str] = PromptSession(
            history=history,
            completer=_Completer(),
            complete_while_typing=_types_command(),
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
            enable_open_in_editor=False,
        )

    def note(self, text: str) -> None:
        if not self.quiet:
            self._err.print(" ".join(text.split()), style="dim", markup=False, soft_wrap=True)

    def error(self, text: str) -> None:
        self._err.print("error: " + " ".join(text.split()), style="red", markup=False, soft_wrap=True)

    def rows(self, rows: Rows) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows:
            table.add_row(Text(name), Text(value))
        self._err.print(table)

    def working(self, text: str) -> AbstractContextManager[object]:
        return render.status(text, self.quiet)

    @contextmanager
    def answering(self, text: str) -> Iterator[Sink]:
        live = LiveMarkdown(self._out)
        with stopping() as stopper, render.status(text, self.quiet) as begun:
            try:
                yield TerminalSink(stopper, begun, live)
            finally:
                if stopper.begun:
                    live.stop()

    def edit(self, text: str) -> str | None:
        if command():
            with _echo(True):
                return edited(text)
        try:
            return self._lines.prompt("edit> ", default=text)
        except (KeyboardInterrupt, EOFError):
            return None

    def read(self, prompt: str) -> str:
        """A line, or several between two FENCEs or joined by Alt-Enter. Raises KeyboardInterrupt and EOFError."""
        return self._lines.prompt(prompt)


def converse(chat: Chat, view: TerminalView) -> None:
    """Ask for lines until somebody leaves. What is typed in between waits for the next prompt, and is shown there."""
    with _echo(False):
        while True:
            try:
                line = view.read(f"[{len(chat.attached)} attached] {_PROMPT}" if chat.attached else _PROMPT)
            except KeyboardInterrupt:
                view.note("Ctrl-D or /exit leaves")
                continue
            except EOFError:
                return
            if not chat.respond(line):
                return


@contextmanager
def _echo(on: bool) -> Iterator[None]:
    """Whether the terminal shows by itself what is typed; prompts show it by their own means. Ctrl-C works as ever."""
    try:
        import termios
    except ImportError:  # Windows, where nothing is echoed unless somebody reads
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    changed = before.copy()
    changed[3] = changed[3] | termios.ECHO if on else changed[3] & ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        state = buffer.complete_state
        if state is not None and state.current_completion is not None:
            buffer.apply_completion(state.current_completion)
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _types_command() -> Condition:
    """Offer commands at once; what follows them, and files, only when Tab asks for it."""
    from prompt_toolkit.application import get_app

    return Condition(lambda: re.fullmatch(r"/[a-z]*", get_app().current_buffer.text) is not None)


class _Completer(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        for offer in offers(document.text_before_cursor, profile_names):
            yield Completion(offer.text, -offer.length, display=offer.shown, display_meta=offer.words)
