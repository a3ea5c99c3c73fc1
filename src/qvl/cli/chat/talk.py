"""The core of `qvl chat`: a line goes in, the conversation changes or stays as it was. Knows no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qvl.cli.chat import context
from qvl.cli.chat.attachments import read_line, short_name
from qvl.cli.chat.dialogue import Dialogue, Turn, media_of
from qvl.cli.chat.settings import Settings
from qvl.cli.chat.view import View
from qvl.cli.streams import OutputError
from qvl.errors import ContextLimitError, QvlError
from qvl.messages import Image, Message, Part, Video

if TYPE_CHECKING:
    from qvl.cli.chat.model import ChatModel
    from qvl.processing.prompt import Prompt
    from qvl.runtime.records import Sampling, Stats

FENCE = '"""'
INTERRUPTED = "interrupted"


class Leave(Exception):  # noqa: N818 -- no error
    """The conversation is over."""


@dataclass(frozen=True)
class Last:
    """Figures of the last answer. ended: a finish reason or INTERRUPTED, which has no stats."""

    ended: str
    prompt_tokens: int
    new_tokens: int
    stats: Stats | None


@dataclass
class _Reply:
    """An answer while it grows."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    ended: str = INTERRUPTED
    stats: Stats | None = None


class Chat:
    """A conversation and what is about to be said in it.

    attached: pictures and clips for the next question. draft: a question that was not answered, for /retry and /edit.
    before: the conversation that /clear, /load or /drop took away, for /undo. exit_code: of the first error.
    interrupted: whether Ctrl-C was ever pressed while something was done.
    """

    def __init__(self, model: ChatModel, view: View, settings: Settings | None = None) -> None:
        self.model = model
        self.view = view
        self.settings = settings or Settings()
        self.dialogue = Dialogue()
        self.attached: tuple[Image | Video, ...] = ()
        self.draft: tuple[Message, ...] = ()
        self.before: Dialogue | None = None
        self.last: Last | None = None
        self.own_files: set[str] = set()  # what /save wrote or /load read here, which /save may write over
        self.exit_code = 0
        self.interrupted = False
        self.pasted = 0
        self.debug = False
        self.shows_stats = False

    def begin(self, system: str | None, messages: str | None) -> None:
        """Start with a system turn or with a conversation from a file. Raises QvlError."""
        from qvl.cli.chat import actions

        if messages is not None:
            actions.open_file(self, messages)
            self.before = None
        if system is not None:
            self.dialogue = Dialogue(Message.of("system", system))

    def respond(self, line: str) -> bool:
        """Take a question or a command; False when the conversation is over. What goes wrong is told, not raised.

        Only a broken pipe and OutputError come out: there is nobody left to tell.
        """
        try:
            self._respond(line)
        except Leave:
            return False
        except KeyboardInterrupt:
            self.interrupted = True
            self.view.note("stopped")
        except (BrokenPipeError, OutputError):
            raise
        except QvlError as error:
            self._failed(str(error), error.exit_code)
        except Exception as error:  # a conversation of an hour is not lost to a bug in one answer
            if self.debug:
                raise
            self.model.forget()
            self._failed(f"{type(error).__name__}: {error} (not foreseen; --debug shows where)", 1)
        return True

    def attach(self, parts: Sequence[Image | Video]) -> None:
        """Keep pictures and clips for the next question, and show them. Raises MediaError when one cannot be read."""
        shown = []
        for part in parts:
            sent = self.settings.applied([Message.of("user", part)])
            with self.view.working(f"reading {short_name(part)}"):
                shown.append(f"{short_name(part)} ({self.model.tokens(sent) - self.model.tokens(_EMPTY)} tokens)")
        self.attached += tuple(parts)
        if shown:
            self.view.note(f"attached: {', '.join(shown)}")

    def ask(self, text: str, known: Sequence[Image | Video] = ()) -> None:
        """Send a question with what is attached to it; without words it is attached to the next. Raises QvlError.

        known: what the marks of an edited text stand for.
        """
        with self.view.working("reading pictures and clips") if "://" in text else nullcontext():
            reading = read_line(text, known)
        if not reading.parts:
            return
        if len(reading.media) == len(reading.parts):
            self.attach(reading.media)
            return
        for name in reading.not_found:
            self.view.note(f"{name}: no such file, so it is sent as text")
        if reading.media:
            self.view.note(f"attached: {', '.join(map(short_name, reading.media))}")
        if media_of(self.draft):
            self.view.note("the question that was not answered is given up, with its pictures and clips")
        parts: tuple[Part, ...] = (*self.attached, *reading.parts)
        self.attached = ()
        self.send((Message("user", parts),), self.dialogue)

    def send(self, asked: tuple[Message, ...], base: Dialogue) -> None:
        """Answer `asked` after `base`. On success that is the conversation; otherwise it stays as it was.

        A question that is new stays at hand for /retry and /edit until it is answered. Raises QvlError.
        """
        if base is self.dialogue:
            self.draft = asked
        sampling = self.model.sampling(self.settings.sampling)
        sent = self.settings.applied(asked)
        try:
            with self.view.working("reading pictures and clips"):
                prompt = self.model.prompt((*base.messages, *sent), sampling)
        except KeyboardInterrupt:
            self.interrupted = True
            self.view.note("stopped; the conversation is as it was, /retry asks again")
            return
        except ContextLimitError as error:
            size = f"{error.tokens} tokens with this question, the context holds {error.limit}"
            self._failed(f"the conversation has {size}; nothing was sent, nothing was cut", error.exit_code)
            context.offer(self, error, base, sampling)
            return
        except QvlError as error:
            self._failed(str(error), error.exit_code)
            again = "; /retry or /edit asks again" if self.draft else ""
            self.view.note(f"the conversation is as it was{again}")
            return
        from qvl.cli.chat import commands

        reply = self._answer(prompt, sampling)
        if not reply.token_ids:
            self.view.note("stopped before the first word; the conversation is as it was, /retry asks again")
            return
        answer = Message.of("assistant", self.model.history(reply.token_ids, reply.text))
        self.dialogue = base.with_turn(Turn(asked, sent, (answer,)))
        self.draft, self.before = (), None
        self.last = Last(reply.ended, len(prompt), len(reply.token_ids), reply.stats)
        context.remarks(self, reply.text, sampling)
        if self.shows_stats:
            commands.run(self, "/stats")

    def replaced(self, dialogue: Dialogue) -> None:
        """Put another conversation in the place of this one, which /undo brings back."""
        self.before, self.dialogue = self.dialogue, dialogue

    def revised(self, name: str, values: Sequence[str]) -> None:
        """Change a setting. Raises UsageError."""
        self.settings = self.settings.changed(name, values, self.model.sampling)

    def overview(self) -> list[tuple[str, str]]:
        """The turns, each with its tokens."""
        return [
            (f"turn {number}", f"{tokens} tokens  {context.label(turn.asked)}")
            for number, (turn, tokens) in enumerate(
                zip(self.dialogue.turns, context.costs(self.model, self.dialogue), strict=True), 1
            )
        ]

    def switch(self, name: str) -> None:
        """Go on with another model; the old one comes back when that cannot be loaded. Raises QvlError."""
        other = self.model.other(name)
        dropped = bool(self.model.choice.model.adapter)
        self.model.release()
        try:
            other.load()
        except BaseException:
            other.release()
            self.model.load()
            raise
        self.model = other
        if dropped:
            self.view.note("the adapters of the model before are not used with this one")
        if other.remark:
            self.view.note(other.remark)

    def _respond(self, line: str) -> None:
        from qvl.cli.chat import commands

        text = line.strip()
        if text.startswith(FENCE):
            self.ask(text.removeprefix(FENCE).removesuffix(FENCE).strip("\r\n"))
        elif commands.is_command(text):
            commands.run(self, text)
        else:
            self.ask(text.removeprefix("/") if text.startswith("//") else text)

    def _answer(self, prompt: Prompt, sampling: Sampling) -> _Reply:
        """Stream an answer to the view, up to its end or Ctrl-C; a session stays good wherever it is broken off."""
        reply = _Reply()
        with self.view.answering(f"reading {len(prompt)} tokens") as out:
            stream: Any = self.model.stream(prompt, sampling)
            try:
                with closing(stream):
                    for chunk in stream:
                        reply.text += chunk.text
                        reply.token_ids += chunk.token_ids
                        out.write(chunk.text)
                        if chunk.finish_reason is not None:
                            reply.ended, reply.stats = chunk.finish_reason, chunk.stats
                        elif out.stopped:
                            self.interrupted = True
                            break
            except KeyboardInterrupt:
                self.interrupted = True  # what came before it stays
        return reply

    def _failed(self, text: str, code: int) -> None:
        self.view.error(text)
        self.exit_code = self.exit_code or code


_EMPTY = (Message("user", ()),)
