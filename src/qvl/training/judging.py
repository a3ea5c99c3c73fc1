"""What a model in training makes of held-out samples: beside their loss, its own answers to some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qvl.errors import UsageError
from qvl.messages import Message, Text
from qvl.model.qwen2_vl import Qwen2VL
from qvl.training.run import Answered, Run

# Given by whoever can run a model; training itself cannot.
Answerer = Callable[[Qwen2VL, Sequence[Message]], str]


class Judge:
    """Asks the model the last question of some held-out samples, always the same ones."""

    def __init__(self, run: Run, model: Qwen2VL, answer: Answerer | None) -> None:
        """Raises UsageError when answers are asked for and nothing is held out."""
        self._model, self._answer = model, answer
        count = run.options.eval_answers if answer is not None else 0
        if count and not len(run.held_out):
            raise UsageError("training.eval_answers needs samples that are held out: set training.eval_split")
        indices = [int(run.prepared.indices[position]) for position in run.held_out[:count]]
        self._asked = [(run.dataset.where(index), *_split(run.dataset[index].messages)) for index in indices]

    def answers(self, wants_stop: Callable[[], bool]) -> tuple[Answered, ...] | None:
        """Answer them now. wants_stop: asked before each whether to give up; None is then given back."""
        if not self._asked or self._answer is None:
            return ()
        found = []
        self._model.eval()
        try:
            for where, asked, reply in self._asked:
                if wants_stop():
                    return None
                found.append(Answered(where, reply, self._answer(self._model, asked)))
        finally:
            self._model.train()
        return tuple(found)


def _split(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str]:
    """What comes before the last reply that is learnt, and the words of that reply."""
    last = max(i for i, message in enumerate(messages) if message.role == "assistant" and message.loss)
    reply = "".join(part.text for part in messages[last].parts if isinstance(part, Text))
    return tuple(messages[:last]), reply
