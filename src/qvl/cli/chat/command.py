"""`qvl chat`: a conversation about pictures and clips, in a terminal or through a pipe."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from qvl.cli import render
from qvl.cli.chat.options import TalkMediaOptions
from qvl.cli.options import ModelOptions, SamplingOptions, flattened, option
from qvl.errors import UsageError

if TYPE_CHECKING:
    from qvl.cli.chat.talk import Chat
    from qvl.cli.chat.view import View

_SIMPLE_TERMINALS = ("", "dumb", "unknown")


@dataclass(frozen=True)
class ChatOptions:
    """How the conversation begins and looks."""

    panel: ClassVar[str] = "Conversation"

    system: Annotated[str | None, option("--system", may_be_empty=True, help="The system turn.")] = None
    messages: Annotated[
        str | None, option("--messages", metavar="FILE", help="Go on with a conversation from JSON, as /load does.")
    ] = None
    plain: Annotated[bool, option("--plain", help="No line editing, no Markdown, no colours; so it is in a pipe.")] = (
        False
    )
    no_history: Annotated[bool, option("--no-history", help="Do not keep what is typed for the next time.")] = False
    stats: Annotated[bool, option("--stats", help="Tokens, times and memory after each answer.")] = False
    quiet: Annotated[bool, option("--quiet", "-q", help="No progress, no remarks and no warnings.")] = False
    debug: Annotated[bool, option("--debug", help="Show the traceback of an error; so does QVL_DEBUG=1.")] = False


@flattened
def chat(media: TalkMediaOptions, model: ModelOptions, sampling: SamplingOptions, talk: ChatOptions) -> None:
    """Talk about pictures and clips; /help lists the commands. Piped in, each line of standard input is a question."""
    from qvl.cli.chat import attachments
    from qvl.cli.chat.model import ChatModel, Choice
    from qvl.cli.chat.settings import Settings
    from qvl.cli.chat.talk import Chat
    from qvl.cli.media import check_limits, limits_given

    if talk.quiet:
        warnings.simplefilter("ignore")
    with render.manners(render.AnswerWriter(silent=True)):
        check_limits(media)
        if talk.messages is not None and talk.system is not None:
            raise UsageError("--messages holds the system turn too: leave out --system, or set it by /system")
        given = [attachments.of(source) for source in media.media]
        given += [attachments.film(source) for source in media.video]
        chat_model = ChatModel(Choice(model, media, talk.quiet))
        overrides = sampling.overrides()
        chat_model.sampling(overrides)  # a wrong value is told before gigabytes are read
        view = _view(talk)
        conversation = Chat(chat_model, view, Settings(overrides, limits_given(media)))
        conversation.shows_stats = talk.stats
        conversation.debug = talk.debug or os.environ.get("QVL_DEBUG", "0") not in ("", "0")
        conversation.begin(talk.system, talk.messages)
        conversation.attach(given)
        chat_model.load()
        if chat_model.remark is not None:
            view.note(chat_model.remark)
        _converse(conversation, view)
    if conversation.exit_code and not _is_typed():
        raise typer.Exit(conversation.exit_code)


def _view(talk: ChatOptions) -> View:
    """The terminal's own front end where there is one to speak of; the plain one otherwise."""
    simple = talk.plain or (sys.platform != "win32" and os.environ.get("TERM", "").lower() in _SIMPLE_TERMINALS)
    if not simple and _is_typed() and sys.stdout.isatty():
        from qvl.cli.chat.terminal import TerminalView

        return TerminalView(talk.quiet, not talk.no_history)
    from qvl.cli.chat.plain import PlainView

    return PlainView(talk.quiet)


def _converse(conversation: Chat, view: View) -> None:
    from qvl.cli.chat import plain

    if isinstance(view, plain.PlainView):
        if _is_typed():
            view.note("/help lists the commands, Ctrl-D leaves")
        plain.converse(conversation)
        return
    from qvl.cli.chat import terminal

    assert isinstance(view, terminal.TerminalView)
    view.note(f"{conversation.model.profile.model}: /help lists the commands, Ctrl-D leaves")
    terminal.converse(conversation, view)


def _is_typed() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()
