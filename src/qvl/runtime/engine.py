"""The door to everything that runs a model: load once, then ask as often as you like.

engine = Engine.load("2b")
for chunk in engine.stream([Message.of("user", Image("photo.jpg"), "Describe this picture.")]):
    print(chunk.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from qvl import environment

environment.prepare()

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import paddle  # noqa: E402

from qvl.errors import ContextLimitError, UnforeseenError, UsageError  # noqa: E402
from qvl.hub.locate import locate  # noqa: E402
from qvl.messages import Message  # noqa: E402
from qvl.messages_json import as_messages  # noqa: E402
from qvl.model.adapter import Adapter, open_adapters  # noqa: E402
from qvl.model.adapter_config import AdapterRequest  # noqa: E402
from qvl.model.checkpoint_writer import STORED_NAMES  # noqa: E402
from qvl.model.config import ModelConfig  # noqa: E402
from qvl.model.device import Placement, place  # noqa: E402
from qvl.model.quantization import Quantization, chosen_quantization  # noqa: E402
from qvl.model.qwen2_vl import Qwen2VL  # noqa: E402
from qvl.model.save import save_model  # noqa: E402
from qvl.model.weights import Progress  # noqa: E402
from qvl.ops import rounding  # noqa: E402
from qvl.processing.processor import Processor  # noqa: E402
from qvl.processing.prompt import Prompt  # noqa: E402
from qvl.processing.template import IM_END  # noqa: E402
from qvl.profile import Profile, load_profile  # noqa: E402
from qvl.reading import load_processor  # noqa: E402
from qvl.runtime import graph, memory  # noqa: E402
from qvl.runtime.answering import Answering, Drafts, step  # noqa: E402
from qvl.runtime.body import Body, Whole  # noqa: E402
from qvl.runtime.decode import SequenceCache, encode_visions, prefill, prompt_inputs  # noqa: E402
from qvl.runtime.features import FeatureCache  # noqa: E402
from qvl.runtime.generation import GenerationConfig, resolve  # noqa: E402
from qvl.runtime.graph import StepGraphs  # noqa: E402
from qvl.runtime.lookup import Lookup  # noqa: E402
from qvl.runtime.records import Answer, Chunk, Finished, Request, Sampling, Stats  # noqa: E402
from qvl.runtime.sampler import Sampler  # noqa: E402
from qvl.runtime.scheduler import serve  # noqa: E402
from qvl.runtime.speculation import Speculation, StepCosts  # noqa: E402
from qvl.runtime.split.layout import check_split, chosen_device, split_devices  # noqa: E402
from qvl.runtime.split.model import SplitModel, part_config  # noqa: E402
from qvl.runtime.writer import AnswerWriter  # noqa: E402

Messages = Sequence[Message] | Sequence[Mapping[str, Any]]
Conversation = Messages | Prompt


class Engine:
    """A loaded model with its processor. Holds no conversation: every call starts from what it is given.

    One thread at a time computes with it: Paddle's device and whether there are gradients are the process's.
    """

    def __init__(
        self, profile: Profile, folder: Path, processor: Processor, generation: GenerationConfig, placement: Placement
    ) -> None:
        self.profile = profile
        self.folder = folder
        self.config = processor.config
        self.processor = processor
        if profile.template == "chat":  # a base model may have been taught turns, of which its files do not know
            generation = generation.ending(processor.tokenizer.special_id(IM_END))
        self.generation = generation
        self.placement = placement
        self.adapters: tuple[tuple[AdapterRequest, Adapter], ...] = ()
        self.quantization: Quantization | None = None
        self.split: tuple[str, ...] = ()
        self.cache_dtype = placement.dtype if profile.cache_dtype == "auto" else profile.cache_dtype
        self.features = FeatureCache(profile.feature_cache_mib << 20)
        self.costs = StepCosts()
        self.load_seconds = 0.0
        self._body: Body | None = None
        self._graphs: StepGraphs | None = None
        self._no_graphs = graph.why_not(placement)

    @classmethod
    def open(
        cls,
        profile: str | Path | Profile = "demo",
        *,
        model: str | Path | None = None,
        settings: Sequence[str] = (),
        device: str | None = None,
        dtype: str | None = None,
        quantize: str | None = None,
        devices: str | None = None,
        adapters: Sequence[str] = (),
    ) -> Engine:
        """Find a model and read all of it that is small. Weights are read by `load_weights`, or when first needed.

        profile: a name, a YAML file or a Profile. model: a folder or hub id in place of the profile's.
        settings: "key=value" over the profile. device: auto, cpu, gpu or gpu:N. dtype: auto, float32, bfloat16 or
        float16. quantize: auto, none, bf16, int8 or int4. devices: GPUs to split the model over, such as "0,1".
        adapters: LoRA folders as "DIR", "name=DIR" or "name=DIR:scale"; what they add sums.
        Raises QvlError: UsageError for the request, CheckpointError, DeviceError.
        """
        chosen = profile if isinstance(profile, Profile) else load_profile(profile, settings)
        if isinstance(profile, Profile) and settings:
            raise UsageError("settings go with a profile's name; a Profile has `revised`")
        changes = {"model": model and str(model), "device": device, "dtype": dtype, "quantize": quantize}
        changes["devices"] = devices
        # A Profile that was made by hand was not looked at yet: a misspelt width, say, would quantise nothing.
        chosen = chosen.revised(asdict(chosen), "Profile")
        chosen = chosen.revised({name: value for name, value in changes.items() if value is not None}, "Engine")
        placement = place(chosen_device(chosen), chosen.dtype)
        folder = locate(chosen.model)
        config = ModelConfig.from_folder(folder)
        generation = GenerationConfig.from_folder(folder, config.eos_token_id)
        engine = cls(chosen, folder, load_processor(folder, config, chosen), generation, placement)
        engine.quantization = chosen_quantization(chosen.quantize, folder, placement.device, placement.dtype)
        engine.adapters = open_adapters(adapters, config)
        engine.split = split_devices(chosen, placement)
        check_split(config, engine.split, engine.quantization)
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
        if self._body is not None:
            return
        start = time.perf_counter()
        body: Body
        if self.split:
            body = SplitModel(self.config, self.placement, self.split, self.adapters)
        else:
            body = Whole(self.config, self.placement, self.quantization, self.adapters)
        paddle.set_device(body.device)
        if check_memory:
            dtype, parts = self.placement.dtype, len(self.split) or 1
            memory.check_weights(self.config, dtype, body.free_memory(), self.adapters, self.quantization, parts)
        body.load(self.folder, self.profile, on_progress)
        self._body = body
        if isinstance(body, Whole) and not self._no_graphs:
            self._graphs = StepGraphs(body.runner)
        self.load_seconds = time.perf_counter() - start

    def save(self, folder: str | Path, *, dtype: str = "bfloat16") -> None:
        """Write the model as a Hugging Face folder, which transformers loads too. dtype: of the stored weights.

        Raises CheckpointError when the folder is already there, UsageError with adapters or quantised weights and for
        another dtype.
        """
        if dtype not in STORED_NAMES:
            raise UsageError(f"dtype is {dtype!r}; expected one of {', '.join(STORED_NAMES)}")
        if self.quantization is not None:
            raise UsageError("quantised weights are written by 'qvl quantize'")
        if self.adapters:
            raise UsageError("weights with an adapter are written by 'qvl merge-lora'")
        save_model(self.model, Path(folder), source=self.folder, dtype=dtype)

    @property
    def model(self) -> Qwen2VL:
        """The layers, with their weights. Raises UsageError where they are split over several processes."""
        body = self.body
        if not isinstance(body, Whole):
            raise UsageError("a split model has no layers here; take one device")
        return body.runner

    @property
    def body(self) -> Body:
        """What prompts run on, with its weights."""
        self.load_weights()
        assert self._body is not None
        return self._body

    def lend(self, model: Qwen2VL) -> None:
        """Take layers that somebody else holds in place of loading them."""
        self._body = Whole(self.config, self.placement, model=model)

    def prompt(self, messages: Messages) -> Prompt:
        """Read the media and lay out the prompt.

        messages: Message records, or dictionaries in the OpenAI or Qwen form.
        Raises MediaError, UsageError, and ContextLimitError, which is one, when it is over the context.
        """
        start = time.perf_counter()
        prompt = self.processor.prompt(as_messages(messages))
        if len(prompt) == 0:
            raise UsageError("the prompt is empty")
        self.room(prompt, Sampling())
        return replace(prompt, seconds=time.perf_counter() - start)

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together; an answer that reaches it ends with "length"."""
        limit = self.config.max_position_embeddings
        return min(limit, self.profile.max_context or limit)

    def sampling(self, **overrides: object) -> Sampling:
        """The checkpoint's generation settings, then the profile's, then these (None says nothing)."""
        return resolve(self.generation, asdict(self.profile.generation), overrides)

    def check_memory(
        self, prompt: Prompt, sampling: Sampling, *, promised: int = 0, held: tuple[int, int] = (0, 0)
    ) -> None:
        """Raise MemoryLimitError, with tokens and bytes, when the run would not fit beside what is already loaded.

        promised: bytes that look free and are not. held: tokens of the prompt that a cache has, and its capacity.
        """
        dtype, room, cache = self.placement.dtype, self.room(prompt, sampling), memory.Held(self.cache_dtype, *held)
        config, size = self.config, len(self.split) or 1
        weights = 0
        if self._body is None:
            weights = memory.weight_bytes(config, dtype, self.adapters, self.quantization, size)
        need = memory.need(part_config(config, size), prompt, room, dtype, weights, cache)
        with self.computing():
            if self._body is not None:
                free = self._body.free_memory()
            else:
                free = memory.available_bytes() // (size if self.placement.device == "cpu" else 1)
        memory.check(need, free - promised)

    def marked_text(self, token_ids: Sequence[int]) -> str:
        """Text of an answer with its grounding marks, without the token that ended it."""
        ids = [
            i for n, i in enumerate(token_ids) if not (n == len(token_ids) - 1 and i in self.generation.eos_token_ids)
        ]
        return self.processor.tokenizer.decode(ids, keep_special=True)

    def stream(self, conversation: Conversation, sampling: Sampling | None = None) -> Iterator[Chunk]:
        """Answer, a chunk for each step; the last one has the finish reason and the figures."""
        yield from self.chunks(self.begin(self.laid_out(conversation), sampling or self.sampling()))

    def next_logits(self, conversation: Conversation) -> npt.NDArray[np.float32]:
        """Logits of the token that would follow the prompt, float32 [vocab_size]."""
        prompt = self.laid_out(conversation)
        with self.computing():
            features, _ = encode_visions(self.body.runner, prompt.visions, self.features)
            inputs = prompt_inputs(self.config, prompt, features)
            logits: npt.NDArray[np.float32] = self.body.runner(inputs)[0].numpy()
        return logits

    def generate(self, conversation: Conversation, sampling: Sampling | None = None) -> Answer:
        """The whole answer at once."""
        return self.generate_batch([conversation], sampling)[0]

    def generate_batch(self, conversations: Sequence[Conversation], sampling: Sampling | None = None) -> list[Answer]:
        """Answer several conversations together; each gives what it gives alone. Raises the first error of any."""
        settings = sampling or self.sampling()
        count = len(conversations)
        prompts = deque(self.laid_out(conversation) for conversation in conversations)  # given away one by one
        requests = (Request(number, prompts.popleft(), settings) for number in range(count))
        answers: dict[object, Answer] = {}
        for finished in self.serve(requests, batch_size=max(1, count), check_memory=False):
            if finished.error is not None:
                unforeseen = finished.error.__cause__ if isinstance(finished.error, UnforeseenError) else None
                raise unforeseen or finished.error
            assert finished.answer is not None
            answers[finished.key] = finished.answer
        return [answers[number] for number in range(count)]

    def serve(
        self, requests: Iterable[Request | None], *, batch_size: int, check_memory: bool = True
    ) -> Iterator[Finished]:
        """Answer requests as they come, up to `batch_size` at a time; results in the order of finishing.

        requests: None among them says that there is none yet; what is being answered goes on before more are asked for.
        Requests are taken when there is room for them, and their media read while others are being answered. One joins
        when a place is free and leaves when it is done. What is wrong with a request, that it does not fit the memory
        included, is the `error` of its result and stops no other; an UnforeseenError is what is no QvlError of itself.
        """
        return serve(self, requests, batch_size=batch_size, check_memory=check_memory)

    def room(self, prompt: Prompt, sampling: Sampling) -> int:
        """How many tokens an answer may have. Raises ContextLimitError when the prompt leaves none."""
        if len(prompt) >= self.max_context:
            raise ContextLimitError(len(prompt), prompt.vision_tokens(self.config), self.max_context)
        return min(sampling.max_new_tokens, self.max_context - len(prompt))

    def cache(self, capacity: int) -> SequenceCache:
        """An empty cache for so many tokens."""
        with self.computing():
            return self.body.cache(capacity, self.cache_dtype)

    def begin(self, prompt: Prompt, sampling: Sampling, cache: SequenceCache | None = None) -> Answering:
        """Run a prompt and draw the first token. cache: one that holds a beginning of the prompt.

        What is given back has no pixels any more, which take more memory than all else of a long clip.
        """
        room, eos = self.room(prompt, sampling), self.generation.eos_token_ids
        writer = AnswerWriter(self.processor.tokenizer, sampling, eos, room)
        sampler = Sampler(sampling, prompt.input_ids.tolist(), eos)
        cache = self.cache(len(prompt) + room) if cache is None else cache
        with self.computing():
            prefilled = prefill(self.body.runner, prompt, cache, self.features)
        pads = (self.config.image_token_id, self.config.video_token_id)
        lookup = Lookup(prompt.input_ids, room, never=pads, last=eos)
        drafts = Drafts(lookup, Speculation(sampling, self.costs))
        return Answering(prompt.without_patches(), prefilled, cache, sampler, writer, drafts)

    def step(self, going: Sequence[Answering]) -> None:
        """Take answers a step further, all at once; an answer that fails has an `error`, others go on.

        Raises what goes wrong with all of them; then they are as before.
        """
        with self.computing():
            step(self.body.runner, going, self.costs, self._graphs)

    def chunks(self, answering: Answering) -> Iterator[Chunk]:
        """The rest of an answer, chunk by chunk."""
        while answering.finish_reason is None:
            yield Chunk(*answering.fresh())
            self.step([answering])
            if answering.error is not None:
                raise answering.error
        yield Chunk(*answering.fresh(), answering.finish_reason, self._stats(answering))

    def answer(self, answering: Answering) -> Answer:
        """A finished answer as a record."""
        writer = answering.writer
        assert writer.finish_reason is not None
        ids = tuple(writer.token_ids)
        return Answer(writer.text, writer.marked_text, ids, writer.finish_reason, self._stats(answering))

    def _stats(self, answering: Answering) -> Stats:
        return answering.stats(self.config, self.load_seconds, self.peak_memory())

    def peak_memory(self) -> int:
        """The most bytes taken so far: of the GPU, or the fullest of several; on a CPU, with those of workers."""
        with self.computing():
            return self.body.peak_memory()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """On this engine's device, which Paddle has one of for the whole process, and without gradients."""
        paddle.set_device("cpu" if self.split else self.placement.device)
        with paddle.no_grad(), rounding(False):  # which training, that may be under way, does otherwise
            yield

    def laid_out(self, conversation: Conversation) -> Prompt:
        """A conversation as a prompt; one that is a prompt already is taken as it is."""
        return conversation if isinstance(conversation, Prompt) else self.prompt(conversation)
