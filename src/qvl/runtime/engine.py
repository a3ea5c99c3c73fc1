"""The door to everything that runs a model: load once, then ask as often as you like.

engine = Engine.load("2b")
for chunk in engine.stream([Message.of("user", Image("photo.jpg"), "Describe this picture.")]):
    print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qvl import environment

environment.prepare()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import paddle  # noqa: E402

from qvl.errors import UsageError  # noqa: E402
from qvl.hub.locate import locate  # noqa: E402
from qvl.messages import Message  # noqa: E402
from qvl.messages_json import as_messages  # noqa: E402
from qvl.model.adapter import Adapter, apply_adapter, open_adapters  # noqa: E402
from qvl.model.adapter_config import AdapterRequest  # noqa: E402
from qvl.model.config import ModelConfig  # noqa: E402
from qvl.model.device import Placement, place  # noqa: E402
from qvl.model.qwen2_vl import Qwen2VL  # noqa: E402
from qvl.model.save import save_model  # noqa: E402
from qvl.model.weights import Progress, load_model  # noqa: E402
from qvl.processing.processor import Processor  # noqa: E402
from qvl.processing.prompt import Prompt  # noqa: E402
from qvl.profile import Profile, load_profile  # noqa: E402
from qvl.reading import load_processor  # noqa: E402
from qvl.runtime import memory  # noqa: E402
from qvl.runtime.decode import Row, encode_vision, prefill, prompt_inputs, step  # noqa: E402
from qvl.runtime.generation import GenerationConfig, resolve  # noqa: E402
from qvl.runtime.records import Answer, Chunk, Sampling, Stats  # noqa: E402
from qvl.runtime.sampler import Sampler  # noqa: E402
from qvl.runtime.writer import AnswerWriter  # noqa: E402

Messages = Sequence[Message] | Sequence[Mapping[str, Any]]
Conversation = Messages | Prompt


class Engine:
    """A loaded model with its processor. Holds no conversation: every call starts from what it is given."""

    def __init__(
        self, profile: Profile, folder: Path, processor: Processor, generation: GenerationConfig, placement: Placement
    ) -> None:
        self.profile = profile
        self.folder = folder
        self.config = processor.config
        self.processor = processor
        self.generation = generation
        self.placement = placement
        self.adapters: tuple[tuple[AdapterRequest, Adapter], ...] = ()
        self.load_seconds = 0.0
        self._model: Qwen2VL | None = None

    @classmethod
    def open(
        cls,
        profile: str | Path | Profile = "demo",
        *,
        model: str | Path | None = None,
        settings: Sequence[str] = (),
        device: str | None = None,
        dtype: str | None = None,
        adapters: Sequence[str] = (),
    ) -> Engine:
        """Find a model and read all of it that is small. Weights are read by `load_weights`, or when first needed.

        profile: a name, a YAML file or a Profile. model: a folder or hub id in place of the profile's.
        settings: "key=value" over the profile. device: auto, cpu, gpu or gpu:N. dtype: auto, float32, bfloat16 or
        float16. adapters: LoRA folders as "DIR", "name=DIR" or "name=DIR:scale"; what they add sums.
        Raises QvlError: UsageError for the request, CheckpointError, DeviceError.
        """
        chosen = profile if isinstance(profile, Profile) else load_profile(profile, settings)
        if isinstance(profile, Profile) and settings:
            raise UsageError("settings go with a profile's name; a Profile has `revised`")
        changes = {"model": model and str(model), "device": device, "dtype": dtype}
        chosen = chosen.revised({name: value for name, value in changes.items() if value is not None}, "Engine")
        placement = place(chosen.device, chosen.dtype)
        folder = locate(chosen.model)
        config = ModelConfig.from_folder(folder)
        generation = GenerationConfig.from_folder(folder, config.eos_token_id)
        engine = cls(chosen, folder, load_processor(folder, config, chosen), generation, placement)
        engine.adapters = open_adapters(adapters, config)
        return engine

    @classmethod
    def load(
        cls,
        profile: str | Path | Profile = "demo",
        *,
        on_progress: Progress | None = None,
        check_memory: bool = True,
        **choices: Any,
    ) -> Engine:
        """Open a model, see `open`, and load its weights, see `load_weights`."""
        engine = cls.open(profile, **choices)
        engine.load_weights(on_progress=on_progress, check_memory=check_memory)
        return engine

    def load_weights(self, *, on_progress: Progress | None = None, check_memory: bool = True) -> None:
        """Read the weights, once. on_progress: called with (bytes loaded, bytes in all).

        Raises CheckpointError, and MemoryLimitError when they would not fit.
        """
        if self._model is not None:
            return
        start = time.perf_counter()
        paddle.set_device(self.placement.device)
        if check_memory:
            memory.check_weights(self.config, self.placement.dtype, memory.available_bytes())
        self._model = load_model(
            self.folder,
            self.config,
            dtype=self.placement.dtype,
            attention=self.placement.attention,
            layout=None if self.profile.weight_layout == "auto" else self.profile.weight_layout,
            allow_pickle=self.profile.allow_pickle,
            on_progress=on_progress,
        )
        for request, adapter in self.adapters:
            apply_adapter(self._model, adapter, request.scale)
        self.load_seconds = time.perf_counter() - start

    def save(self, folder: str | Path, *, dtype: str = "bfloat16") -> None:
        """Write the model as a Hugging Face folder, which transformers loads too. dtype: of the stored weights.

        Raises CheckpointError when the folder is already there, and UsageError when adapters are in use: the weights
        are those of the base.
        """
        if self.adapters:
            raise UsageError("weights with an adapter are written by 'qvl merge-lora'")
        save_model(self.model, Path(folder), source=self.folder, dtype=dtype)

    @property
    def model(self) -> Qwen2VL:
        """The layers, with their weights."""
        self.load_weights()
        assert self._model is not None
        return self._model

    def prompt(self, messages: Messages) -> Prompt:
        """Read the media and lay out the prompt.

        messages: Message records, or dictionaries in the OpenAI or Qwen form.
        Raises MediaError, and UsageError when it is over the context.
        """
        start = time.perf_counter()
        prompt = self.processor.prompt(as_messages(messages))
        if len(prompt) == 0:
            raise UsageError("the prompt is empty")
        if len(prompt) >= self.max_context:
            vision = sum(v.tokens(self.config.vision_config) for v in prompt.visions)
            raise UsageError(
                f"the prompt has {len(prompt)} tokens ({vision} of them vision), the context holds {self.max_context}; "
                + ("lower --max-pixels or --max-frames, or send less" if vision else "send less")
            )
        return replace(prompt, seconds=time.perf_counter() - start)

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together; an answer that reaches it ends with "length"."""
        limit = self.config.max_position_embeddings
        return min(limit, self.profile.max_context or limit)

    def sampling(self, **overrides: object) -> Sampling:
        """The checkpoint's generation settings, then the profile's, then these (None says nothing)."""
        return resolve(self.generation, asdict(self.profile.generation), overrides)

    def check_memory(self, prompt: Prompt, sampling: Sampling) -> None:
        """Raise MemoryLimitError, with tokens and bytes, when the run would not fit beside what is already loaded."""
        weights = 0 if self._model is not None else memory.weight_bytes(self.config, self.placement.dtype)
        need = memory.need(self.config, prompt, self._room(prompt, sampling), self.placement.dtype, weights)
        memory.check(need, memory.available_bytes())

    def marked_text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer with its grounding marks, without the token that ended it."""
        ids = [
            i for n, i in enumerate(token_ids) if not (n == len(token_ids) - 1 and i in self.generation.eos_token_ids)
        ]
        return self.processor.tokenizer.decode(ids, keep_special=True)

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> Iterator[Chunk]:
        """Answer, a chunk for each token; the last one has the finish reason and the figures."""
        prompt = conversation if isinstance(conversation, Prompt) else self.prompt(conversation)
        settings = sampling or self.sampling()
        row = self._prefill(prompt, settings)
        writer = self._writer(prompt, settings)
        first_token = time.perf_counter()
        while True:
            token = row.token
            text = writer.push(token)
            if writer.finish_reason:
                stats = self._stats(prompt, row, len(writer.token_ids), time.perf_counter() - first_token)
                yield Chunk(text, (token,), writer.finish_reason, stats)
                return
            yield Chunk(text, (token,))
            with self._computing():
                step(self.model, [row])

    def next_logits(self, conversation: Conversation) -> npt.NDArray[np.float32]:
        """Logits of the token that would follow the prompt, float32 [vocab_size]."""
        prompt = conversation if isinstance(conversation, Prompt) else self.prompt(conversation)
        with self._computing():
            inputs = prompt_inputs(self.config, prompt, encode_vision(self.model, prompt))
            logits: npt.NDArray[np.float32] = self.model(inputs)[0].numpy()
        return logits

    def generate(self, conversation: Conversation, sampling: Sampling | None = None) -> Answer:
        """The whole answer at once."""
        return self.generate_batch([conversation], sampling)[0]

    def generate_batch(self, conversations: Sequence[Conversation], sampling: Sampling | None = None) -> list[Answer]:
        """Answer several conversations together; each gives what it gives alone. Figures are those of the batch."""
        settings = sampling or self.sampling()
        prompts = [c if isinstance(c, Prompt) else self.prompt(c) for c in conversations]
        rows = [self._prefill(prompt, settings) for prompt in prompts]
        writers = [self._writer(prompt, settings) for prompt in prompts]
        first_token = time.perf_counter()
        going = list(range(len(rows)))
        answers: dict[int, Answer] = {}
        while going:
            for i in going:
                writers[i].push(rows[i].token)
                if writers[i].finish_reason:
                    elapsed = time.perf_counter() - first_token
                    answers[i] = self._answer(prompts[i], rows[i], writers[i], elapsed)
            going = [i for i in going if i not in answers]
            if going:
                with self._computing():
                    step(self.model, [rows[i] for i in going])
        return [answers[i] for i in range(len(rows))]

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """On this engine's device, which Paddle has one of for the whole process, and without gradients."""
        paddle.set_device(self.placement.device)
        with paddle.no_grad():
            yield

    def _room(self, prompt: Prompt, sampling: Sampling) -> int:
        return min(sampling.max_new_tokens, self.max_context - len(prompt))

    def _prefill(self, prompt: Prompt, sampling: Sampling) -> Row:
        eos = self.generation.eos_token_ids
        sampler = Sampler(sampling, prompt.input_ids.tolist(), eos)
        with self._computing():
            return prefill(self.model, prompt, sampler, len(prompt) + self._room(prompt, sampling))

    def _writer(self, prompt: Prompt, sampling: Sampling) -> AnswerWriter:
        room = self._room(prompt, sampling)
        return AnswerWriter(self.processor.tokenizer, sampling, self.generation.eos_token_ids, room)

    def _answer(self, prompt: Prompt, row: Row, writer: AnswerWriter, decode_seconds: float) -> Answer:
        assert writer.finish_reason is not None
        stats = self._stats(prompt, row, len(writer.token_ids), decode_seconds)
        return Answer(writer.text, writer.marked_text, tuple(writer.token_ids), writer.finish_reason, stats)

    def _stats(self, prompt: Prompt, row: Row, new_tokens: int, decode_seconds: float) -> Stats:
        later = new_tokens - 1  # the first token is the prefill's
        return Stats(
            prompt_tokens=len(prompt),
            vision_tokens=sum(v.tokens(self.config.vision_config) for v in prompt.visions),
            new_tokens=new_tokens,
            load_seconds=self.load_seconds,
            preprocess_seconds=prompt.seconds,
            vision_seconds=row.vision_seconds,
            prefill_seconds=row.prefill_seconds,
            time_to_first_token=prompt.seconds + row.vision_seconds + row.prefill_seconds,
            decode_seconds=decode_seconds,
            tokens_per_second=later / decode_seconds if later and decode_seconds > 0 else 0.0,
            peak_memory_bytes=memory.peak_bytes(),
        )
