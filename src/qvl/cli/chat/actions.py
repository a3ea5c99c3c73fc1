"""What each command does to a conversation. Each is given the rest of its line, and raises QvlError."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from qvl.cli import boxes as drawing
from qvl.cli import render
from qvl.cli.chat import attachments, clipboard, files
from qvl.cli.chat.dialogue import Dialogue, from_messages, text_of
from qvl.errors import UsageError
from qvl.grounding import parse_boxes
from qvl.messages import Message, Text

if TYPE_CHECKING:
    from qvl.cli.chat.talk import Chat

_EMBED = "--embed"
_DEFAULT = "--default"


def image(chat: Chat, rest: str) -> None:
    """/image"""
    chat.attach([attachments.picture(word) for word in _some(rest, "image", "a picture by path or URL")])


def video(chat: Chat, rest: str) -> None:
    """/video"""
    chat.attach([attachments.film(word) for word in _some(rest, "video", "a clip by path, folder or URL")])


def paste(chat: Chat, rest: str) -> None:
    """/paste"""
    _nothing(rest, "paste")
    data = clipboard.picture()
    chat.pasted += 1
    chat.attach([attachments.from_clipboard(data, chat.pasted)])


def system(chat: Chat, rest: str) -> None:
    """/system"""
    if not rest:
        current = chat.dialogue.system
        chat.view.rows([("system", _default_system(chat) if current is None else text_of(current.parts))])
        return
    new = None if rest == _DEFAULT else Message.of("system", "" if rest == '""' else rest)
    chat.dialogue = replace(chat.dialogue, system=new)
    chat.view.note("the system turn is the default again" if new is None else "the system turn is set")


def set_(chat: Chat, rest: str) -> None:
    """/set"""
    if not rest:
        chat.view.rows(chat.settings.shown(chat.model.sampling(chat.settings.sampling)))
        return
    name, *values = attachments.split(rest)
    if not values and "=" in name:
        name, _, value = name.partition("=")
        values = [value]
    chat.revised(name, values)
    shown = dict(chat.settings.shown(chat.model.sampling(chat.settings.sampling)))
    key = name.lower().replace("-", "_")
    later = "; for what is asked from now on, /retry too" if key in chat.settings.limits else ""
    chat.view.note(f"{key} is {shown[key].removesuffix('  (set)')}{later}")


def show(chat: Chat, rest: str) -> None:
    """/show"""
    _nothing(rest, "show")
    dialogue = chat.dialogue
    rows = [("model", f"{chat.model.profile.model} (profile {chat.model.profile.name})")]
    rows.append(("system", _default_system(chat) if dialogue.system is None else text_of(dialogue.system.parts)))
    rows += chat.overview()
    tokens = chat.model.prompt_tokens(dialogue.messages)
    rows.append(("together", f"{tokens} tokens, the context holds {chat.model.max_context}"))
    if chat.attached:
        rows.append(("attached", ", ".join(map(attachments.short_name, chat.attached))))
    if chat.draft:
        rows.append(("not answered", attachments.as_text(chat.draft[-1].parts)[0]))
    given = {**chat.settings.sampling, **chat.settings.limits}
    rows += [(name, str(value)) for name, value in given.items()]
    chat.view.rows(rows)


def retry(chat: Chat, rest: str) -> None:
    """/retry"""
    _nothing(rest, "retry")
    if chat.draft:
        chat.send(chat.draft, chat.dialogue)
        return
    turns = chat.dialogue.turns
    if not turns or not turns[-1].asked:
        raise UsageError("/retry: there is no question yet")
    chat.send(turns[-1].asked, chat.dialogue.without_last())


def undo(chat: Chat, rest: str) -> None:
    """/undo"""
    _nothing(rest, "undo")
    if chat.attached:
        *kept, last = chat.attached
        chat.attached = tuple(kept)
        chat.view.note(f"no longer attached: {attachments.short_name(last)}")
    elif chat.draft:
        chat.draft = ()
        chat.view.note("the question that was not answered is given up")
    elif chat.before is not None:
        chat.dialogue, chat.before = chat.before, None
        chat.view.note(f"the conversation is back: {_turns(chat.dialogue)}")
    elif chat.dialogue.turns:
        chat.dialogue = chat.dialogue.without_last()
        chat.view.note(f"the last turn is taken back; {_turns(chat.dialogue)} left")
    else:
        raise UsageError("/undo: there is nothing to take back")


def edit(chat: Chat, rest: str) -> None:
    """/edit"""
    last = () if chat.draft or not chat.dialogue.turns else chat.dialogue.turns[-1].asked
    asked = chat.draft or last
    if not asked:
        raise UsageError("/edit: there is no question yet")
    before, known = attachments.as_text(asked[-1].parts)
    text = rest if rest else chat.view.edit(before)
    if text is None or not text.strip():
        chat.view.note("nothing was changed")
        return
    reading = attachments.read_line(text, known)
    parts = reading.parts
    if rest and not reading.media:  # only the words were given anew
        parts = (*known, *parts)
    if not any(isinstance(part, Text) for part in parts):
        raise UsageError("/edit: the question has no words")
    changed = (*asked[:-1], replace(asked[-1], parts=parts))
    chat.send(changed, chat.dialogue if chat.draft else chat.dialogue.without_last())


def drop(chat: Chat, rest: str) -> None:
    """/drop"""
    count = len(chat.dialogue.turns)
    if not rest:
        chat.view.rows(chat.overview() or [("turns", "none")])
        return
    numbers: set[int] = set()
    for word in rest.replace(",", " ").split():
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= count:
            raise UsageError(f"/drop: {word} is no turn; there are {_turns(chat.dialogue)}, numbered from 1")
        numbers.update(range(first, last + 1))
    chat.replaced(chat.dialogue.without(numbers))
    chat.view.note(f"dropped; {_turns(chat.dialogue)} left (/undo brings back what was dropped)")


def clear(chat: Chat, rest: str) -> None:
    """/clear"""
    _nothing(rest, "clear")
    chat.replaced(Dialogue(system=chat.dialogue.system))
    chat.attached, chat.draft, chat.last = (), (), None
    chat.view.note("a new conversation (/undo brings the old one back)")


def save(chat: Chat, rest: str) -> None:
    """/save"""
    embed = _EMBED in rest.split()
    path = files.target(_one(rest.replace(_EMBED, " ") if embed else rest, "save", "FILE"), chat.own_files)
    if not chat.dialogue.messages:
        raise UsageError("/save: the conversation is empty")
    embedded = files.save(chat.dialogue.messages, path, embed=embed)
    chat.own_files.add(str(path.resolve()))
    for name in embedded:
        chat.view.note(f"{name}: no longer is at its path what it was, so it is embedded")
    chat.view.note(f"{_turns(chat.dialogue)} written to {path}")


def load(chat: Chat, rest: str) -> None:
    """/load"""
    open_file(chat, _one(rest, "load", "FILE"))


def open_file(chat: Chat, name: str) -> None:
    """Go on with a conversation from a file."""
    path = files.source(name)
    with chat.view.working(f"reading {path.name}"):
        messages = attachments.kept(files.read(path))
    dialogue, question = from_messages(messages)
    turns = tuple(replace(turn, sent=chat.settings.applied(turn.asked)) for turn in dialogue.turns)
    chat.replaced(replace(dialogue, turns=turns))
    chat.attached, chat.draft, chat.last = (), question, None
    chat.own_files.add(str(path.resolve()))
    end = ", and a question: /retry asks it" if question else ""
    chat.view.note(f"{_turns(dialogue)} from {path}{end}")


def export(chat: Chat, rest: str) -> None:
    """/export"""
    path = files.page(_one(rest, "export", "FILE.md"), chat.own_files)
    if not chat.dialogue.messages:
        raise UsageError("/export: the conversation is empty")
    written = files.export(chat.dialogue, path, chat.model.profile.model, chat.own_files)
    chat.own_files.update(str(file.resolve()) for file in written)
    chat.view.note(f"{_turns(chat.dialogue)} written to {path}")


def boxes(chat: Chat, rest: str) -> None:
    """/boxes"""
    out = _one(rest, "boxes", "FILE")
    if not chat.dialogue.turns:
        raise UsageError("/boxes: there is no answer yet")
    answer = chat.dialogue.turns[-1].answer[-1]
    _, target = drawing.prepare(out, chat.dialogue.messages, chat.model.raw_pixels, "/boxes")
    size = (target.picture.height, target.picture.width)
    found = [box.to_pixels(size) for box in parse_boxes(text_of(answer.parts))]
    if not found:
        chat.view.note("the answer has no boxes; nothing is written")
        return
    target.write(found)
    chat.view.rows([(box.label or "box", " ".join(map(str, box.bounds))) for box in found])
    chat.view.note(f"{len(found)} box{'es' if len(found) > 1 else ''} drawn into {target.path}")


def model(chat: Chat, rest: str) -> None:
    """/model"""
    if rest:
        chat.switch(_one(rest, "model", "NAME|DIR"))
    chat.view.rows(chat.model.described())


def stats(chat: Chat, rest: str) -> None:
    """/stats"""
    _nothing(rest, "stats")
    last = chat.last
    if last is None:
        raise UsageError("/stats: nothing was answered yet")
    if last.stats is None:
        chat.view.rows([("prompt", f"{last.prompt_tokens} tokens"), ("answer", f"{last.new_tokens} tokens (stopped)")])
    else:
        chat.view.rows(render.stats_rows(last.stats, last.ended, in_conversation=True))
    used = chat.model.prompt_tokens(chat.dialogue.messages)
    held = chat.model.held_tokens
    chat.view.rows([("conversation", f"{used} tokens of {chat.model.max_context}, {held} of them in the cache")])


def leave(chat: Chat, rest: str) -> None:  # noqa: ARG001 -- "exit please" leaves as well
    """/exit"""
    from qvl.cli.chat.talk import Leave

    raise Leave


def _default_system(chat: Chat) -> str:
    from qvl.processing.template import DEFAULT_SYSTEM

    own = chat.model.profile.system
    return f"{DEFAULT_SYSTEM if own is None else own}  (default)"


def _turns(dialogue: Dialogue) -> str:
    count = len(dialogue.turns)
    return "1 turn" if count == 1 else f"{count} turns"


def _nothing(rest: str, name: str) -> None:
    if rest:
        raise UsageError(f"/{name} stands alone; {rest[:40]!r} was not expected")


def _some(rest: str, name: str, what: str) -> list[str]:
    found = attachments.words(rest)
    if not found:
        raise UsageError(f"/{name}: give {what}")
    return found


def _one(rest: str, name: str, what: str) -> str:
    found = attachments.words(rest)
    if len(found) != 1:
        raise UsageError(f"/{name}: give one {what}" + ("; quote a name with spaces" if found else ""))
    return found[0]
