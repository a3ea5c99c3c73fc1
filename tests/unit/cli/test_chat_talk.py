"""The core of a conversation: what each line does to it, and that what goes wrong leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from talking import FakeModel, Talk

from qvl.cli.chat.commands import COMMANDS
from qvl.errors import CheckpointError, MediaError, MemoryLimitError
from qvl.messages import Image, Message, Text


def test_a_question_is_answered_with_all_that_was_said_before(talk: Talk) -> None:
    talk.say("One?", "Two?")
    assert talk.turns == [("One?", "An answer."), ("Two?", "An answer.")]
    assert talk.model.asked[1] == (
        Message.of("user", "One?"),
        Message.of("assistant", "An answer."),
        Message.of("user", "Two?"),
    )
    assert talk.view.answers == ["An answer."] * 2


def test_empty_lines_ask_nothing(talk: Talk) -> None:
    talk.say("", "   ", '""""""')
    assert talk.turns == [] and talk.model.asked == []


def test_a_text_of_several_lines_and_one_with_a_slash_are_questions(talk: Talk) -> None:
    talk.say('"""\n/help\n\n  me\n"""', "//help me", "/tmp is a folder?"[1:], "/etc/hosts holds what?")
    assert [asked for asked, _ in talk.turns] == [
        "/help\n\n  me",
        "/help me",
        "tmp is a folder?",
        "/etc/hosts holds what?",
    ]


def test_a_picture_alone_waits_for_the_question(talk: Talk) -> None:
    talk.say("cat.png", "/image dog.png")
    assert talk.model.asked == [] and len(talk.chat.attached) == 2
    assert talk.view.notes == ["attached: cat.png (10 tokens)", "attached: dog.png (10 tokens)"]
    talk.say("Which?")
    assert [type(part) for part in talk.model.asked[0][0].parts] == [Image, Image, Text]
    assert talk.chat.attached == ()


def test_what_looks_like_a_picture_and_is_none_is_told(talk: Talk) -> None:
    talk.say("What is dgo.png?")
    assert talk.view.notes == ["dgo.png: no such file, so it is sent as text"]


@pytest.mark.parametrize("error", [MediaError("cat.png: damaged"), MemoryLimitError("too large")])
def test_an_error_keeps_the_conversation_and_the_question(talk: Talk, error: Exception) -> None:
    talk.say("One?")
    talk.model.fails = error
    assert talk.fail("cat.png Two?") == str(error)
    talk.model.fails = None
    talk.say("/retry")
    assert [asked for asked, _ in talk.turns] == ["One?", "Two?"]
    assert len(talk.model.asked[-1][-1].parts) == 2
    assert talk.chat.exit_code == 1


def test_a_bug_in_an_answer_does_not_end_the_conversation(talk: Talk) -> None:
    talk.say("One?")
    talk.model.fails = RuntimeError("boom")
    assert talk.fail("Two?") == "RuntimeError: boom (not foreseen; --debug shows where)"
    assert talk.model.forgotten == 1


def test_a_path_that_is_missing_sends_nothing(talk: Talk) -> None:
    assert "no/cat.png: no such file" in talk.fail("no/cat.png What?")
    assert "no such file" in talk.fail("/image nope.png")
    assert talk.model.asked == []


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(talk: Talk) -> None:
    talk.view.stops_after = 1
    talk.say("One?")
    assert talk.turns == [("One?", "An ")]
    assert talk.view.notes == ["stopped; what was said stays in the conversation"]
    talk.view.stops_after = None
    talk.model.breaks_after = 1  # the second Ctrl-C, within a step
    talk.say("Two?")
    assert talk.turns[1] == ("Two?", "An ")


def test_ctrl_c_before_the_first_word_leaves_the_question_for_retry(talk: Talk) -> None:
    talk.model.breaks_after = 0
    talk.say("One?")
    assert talk.turns == [] and "/retry" in talk.view.notes[0]
    talk.model.breaks_after = None
    talk.say("/retry")
    assert talk.turns == [("One?", "An answer.")]


def test_retry_asks_the_last_question_again_with_the_settings_of_now(talk: Talk) -> None:
    talk.say("cat.png One?", "Two?", "/undo", "/set max_pixels 50000", "/set temperature 0.5", "/retry")
    assert talk.turns == [("One?", "An answer.")]
    first, again = talk.model.asked[0], talk.model.asked[2]
    assert isinstance(first[0].parts[0], Image) and first[0].parts[0].max_pixels is None
    assert isinstance(again[0].parts[0], Image) and again[0].parts[0].max_pixels == 50000
    assert (talk.model.drawn[0].temperature, talk.model.drawn[2].temperature) == (0.0, 0.5)


def test_a_retry_that_fails_keeps_the_old_answer(talk: Talk) -> None:
    talk.say("One?")
    talk.model.says = ["Another."]
    talk.model.breaks_after = 0
    talk.say("/retry")
    assert talk.turns == [("One?", "An answer.")] and talk.chat.draft == ()
    talk.model.breaks_after, talk.model.fails = None, MemoryLimitError("no room")
    talk.fail("/retry")
    talk.model.fails = None
    talk.say("/retry")
    assert talk.turns == [("One?", "Another.")]


def test_undo_takes_back_one_thing_at_a_time(talk: Talk) -> None:
    talk.say("One?", "Two?", "cat.png", "dog.png", "/undo", "/undo")
    assert talk.chat.attached == () and len(talk.turns) == 2
    talk.say("/undo", "/undo")
    assert talk.turns == []
    assert "nothing to take back" in talk.fail("/undo")


@pytest.mark.parametrize("command", ["/clear", "/drop 1-2", "/load other.json"])
def test_undo_brings_a_whole_conversation_back(talk: Talk, command: str) -> None:
    Path("other.json").write_text('[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]')
    talk.say("One?", "Two?", command)
    assert len(talk.turns) < 2
    talk.say("/undo")
    assert [asked for asked, _ in talk.turns] == ["One?", "Two?"]


def test_edit_changes_the_last_question_and_keeps_its_pictures(talk: Talk) -> None:
    talk.say("What is in cat.png?")
    talk.view.edited = "Who is in [#1 cat.png]?"
    talk.say("/edit")
    assert talk.view.to_edit == "What is in [#1 cat.png]?"
    assert talk.turns == [("Who is in ?", "An answer.")]
    talk.say("/edit Where is it?")
    assert talk.turns == [("Where is it?", "An answer.")]
    assert isinstance(talk.model.asked[-1][0].parts[0], Image)
    talk.view.edited = None
    talk.say("/edit")
    assert talk.turns == [("Where is it?", "An answer.")] and talk.view.notes[-1] == "nothing was changed"


def test_the_system_turn_can_be_set_shown_and_taken_back(talk: Talk) -> None:
    talk.say("/system Be brief.", "One?", "/system", "/clear", "Two?", "/system --default", "/retry", "/system")
    assert [messages[0].role for messages in talk.model.asked] == ["system", "system", "user"]
    assert talk.view.tables == [
        [("system", "Be brief.")],
        [("system", "You are a helpful assistant.  (default)")],
    ]


def test_settings_are_checked_listed_and_taken_back(talk: Talk) -> None:
    talk.say("/set max-new-tokens 5", "/set stop END 'two words'", "/set ignore_eos on", "/set fps=2", "/set nframes 8")
    assert talk.chat.settings.sampling == {"max_new_tokens": 5, "stop": ("END", "two words"), "ignore_eos": True}
    assert talk.chat.settings.limits == {"nframes": 8}  # fps and nframes exclude each other
    talk.say("/set stop default", "/set")
    rows = dict(talk.view.tables[0])
    assert rows["max_new_tokens"] == "5  (set)" and rows["stop"] == "none" and rows["nframes"] == "8  (set)"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set temprature 1", "did you mean 'temperature'?"),
        ("/set temp 1", "did you mean 'temperature'?"),
        ("/set zzz 1", "no setting 'zzz'; /set lists them"),
        ("/set top_k", "give a value"),
        ("/set top_k x", "a whole number was expected, not 'x'"),
        ("/set top_p 7", "top-p must be over 0, at most 1, not 7.0"),
        ("/set max_pixels 0", "a whole number above 0 was expected"),
        ("/set fps nan", "a number above 0 was expected"),
        ("/set ignore_eos maybe", "on or off"),
        ("/set speculate yes", "none of auto, on, off"),
        ("/set seed 1 2", "one value was expected"),
        ("/set stop 'a", "not closed"),
        ("/drop 1", "1 is no turn; there are 0 turns"),
        ("/retry", "there is no question yet"),
        ("/edit", "there is no question yet"),
        ("/stats", "nothing was answered yet"),
        ("/boxes out.png", "there is no answer yet"),
        ("/save a.json", "the conversation is empty"),
        ("/export a.md", "the conversation is empty"),
        ("/export a.txt", "must end in .md"),
        ("/load none.json", "no such file"),
        ("/save", "give one FILE"),
        ("/save nowhere/a.json", "there is no folder nowhere"),
        ("/image", "give a picture"),
        ("/image -", "standard input is the conversation"),
        ("/video cat.png", "cat.png is a picture"),
        ("/undo 3", "/undo stands alone"),
        ("/model nothing", "no such model"),
        ("/retri", "there is no command /retri, did you mean '/retry'?"),
        ("/frobnicate", "there is no command /frobnicate; /help lists them"),
        ("/help frobnicate", "there is no command /frobnicate"),
    ],
)
def test_a_wrong_request_says_what_to_do(talk: Talk, line: str, words: str) -> None:
    assert words in talk.fail(line)
    assert talk.chat.exit_code in (1, 2)


def test_help_names_every_command(talk: Talk) -> None:
    talk.say("/help", "/help save")
    shown = " ".join(name for name, _ in talk.view.tables[0])
    assert all(f"/{command.name}" in shown for command in COMMANDS)
    assert talk.view.tables[1][0][0] == "/save FILE [--embed]"


def test_exit_leaves(talk: Talk) -> None:
    assert [talk.chat.respond(line) for line in ("/exit", "/quit", "/q")] == [False] * 3


def test_a_full_context_says_so_and_offers_what_to_drop() -> None:
    talk = Talk(max_context=30)
    talk.say("/set max_new_tokens 5", "one two three four", "five six")  # 4+1+2+1 and 2+1+2+1 tokens
    talk.view.notes.clear()
    long = " ".join(["word"] * 15)
    assert talk.fail(long).startswith(
        "the conversation has 30 tokens with this question, the context holds 30; nothing"
    )
    assert [row[0] for row in talk.view.tables[0]] == ["turn 1", "turn 2"]
    assert talk.view.tables[0][0][1] == "8 tokens  one two three four"
    assert talk.view.notes == ["/drop 1 takes 8 tokens out, then /retry asks again; /clear begins anew"]
    talk.say("/drop 1", "/retry")
    assert [asked for asked, _ in talk.turns] == ["five six", long]
    assert talk.model.asked[-1] == talk.chat.dialogue.messages[:-1]


def test_a_question_that_is_too_long_by_itself_is_told_so() -> None:
    talk = Talk(max_context=10)
    talk.fail(" ".join(["word"] * 12))
    assert talk.view.notes == ["the question alone is too long: /edit shortens it"]


def test_an_answer_that_was_cut_says_why() -> None:
    talk = Talk(max_context=20)
    talk.model.ends = "length"
    talk.say("One?")
    assert "cut at 512 tokens" in talk.view.notes[-1]
    talk.say(" ".join(["word"] * 12))
    assert "the context of 20 tokens is full" in talk.view.notes[-1]
    talk.model.ends = "loop"
    talk.say("/retry")
    assert "repeated itself" in talk.view.notes[-2] and "/drop lists" in talk.view.notes[-1]


def test_another_model_goes_on_with_the_conversation(talk: Talk) -> None:
    other, broken = FakeModel(), FakeModel()
    broken.fails = CheckpointError("damaged")
    other.says = ["Other."]
    talk.model.others = {"other": other, "broken": broken}
    talk.say("One?", "/model")
    talk.model.load()
    assert talk.fail("/model broken") == "damaged"
    assert talk.chat.model is talk.model and talk.model.loaded == 1  # type: ignore[comparison-overlap]
    talk.say("/model other", "Two?")
    assert talk.turns == [("One?", "An answer."), ("Two?", "Other.")]
    assert other.loaded == 1 and talk.model.loaded == 0 and len(other.asked[0]) == 3


def test_show_and_stats_say_what_there_is(talk: Talk) -> None:
    talk.say("cat.png What?", "/set top_k 5", "dog.png", "/show", "/stats")
    shown = dict(talk.view.tables[0])
    assert shown["turn 1"] == "15 tokens  [cat.png] What?"
    assert (shown["together"], shown["attached"], shown["top_k"]) == (
        "15 tokens, the context holds 1000",
        "dog.png",
        "5",
    )
    figures = dict(talk.view.tables[1])
    assert figures["computed"] == "0 tokens, 0 from the cache" and figures["answer"] == "3 tokens (stop)"
    assert dict(talk.view.tables[2])["conversation"] == "15 tokens of 1000, 0 of them in the cache"


def test_what_is_attached_stays_for_the_next_question_when_an_older_one_is_asked_again(talk: Talk) -> None:
    talk.model.fails = MemoryLimitError("no room")
    talk.fail("One?")
    talk.model.fails = None
    talk.say("cat.png", "/retry")
    assert len(talk.chat.attached) == 1
    talk.say("Two?")
    assert [len(turn.media) for turn in talk.chat.dialogue.turns] == [0, 1]
