"""transformers with torch, for `qvl bench --against transformers`: run by a Python that has both, without qvl."""

from __future__ import annotations

import os
import time
from typing import Any

from peer_wire import peak_bytes, question, serve


class Transformers:
    """Loads the same folder as qvl and answers the same question, greedily."""

    def hello(self, threads: int) -> dict[str, Any]:
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        import torch
        import transformers

        # The package reads its parts when they are asked for: here, as qvl's side does, where the time counts.
        from transformers import AutoProcessor, Qwen2VLForConditionalGeneration  # noqa: F401

        torch.set_num_threads(threads)
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        return {"versions": versions, "threads": torch.get_num_threads(), "contexts": True, "batches": True}

    def load(
        self, folder: str, dtype: str, device: str, min_pixels: int | None, max_pixels: int | None
    ) -> dict[str, Any]:
        import torch
        from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

        begun = time.perf_counter()
        self.device = device.replace("gpu", "cuda")
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(
            folder, torch_dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
        self.model.to(self.device).eval()
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given = {name: value for name, value in limits.items() if value is not None}
        self.processor = AutoProcessor.from_pretrained(folder, **given)
        self._wait()
        return {"seconds": time.perf_counter() - begun}

    def question(self, path: str | None, text: str, new_tokens: int) -> dict[str, Any]:
        import torch
        import transformers

        clock: list[float] = []

        class Clock(transformers.StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
                clock.append(time.perf_counter())
                return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

        begun = time.perf_counter()
        inputs = self._inputs(path, text)
        ready = time.perf_counter()
        vision = _Stopwatch(self._tower(), self._wait)
        settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
        with torch.inference_mode(), vision:
            out = self.model.generate(
                **inputs,
                **settings,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                stopping_criteria=transformers.StoppingCriteriaList([Clock()]),
            )
        prompt = inputs["input_ids"].shape[1]
        times = {
            "preprocess": ready - begun,
            "vision": vision.seconds,
            "prefill": clock[0] - ready - vision.seconds,
            "first_token": clock[0] - begun,
            "answer": clock[-1] - clock[0],
        }
        return question(times, {"prompt": prompt, "answer": out[0, prompt:].tolist()})

    def decode(self, context: int, batch: int, new_tokens: int) -> dict[str, Any]:
        """As qvl's side does it: caches filled with random keys and values, then one token after the other."""
        import torch
        from transformers import DynamicCache

        config = getattr(self.model.config, "text_config", self.model.config)
        heads, dtype = config.num_key_value_heads, self.model.dtype
        shape = (batch, heads, context - 1, config.hidden_size // config.num_attention_heads)
        cache = DynamicCache()
        with torch.inference_mode():
            if context > 1:
                for layer in range(config.num_hidden_layers):
                    keys, values = (torch.randn(shape, dtype=dtype, device=self.device) for _ in range(2))
                    cache.update(keys, values, layer)
            tokens = torch.full((batch, 1), 7, device=self.device)
            tokens = self._step(tokens, cache, context - 1)
            begun = time.perf_counter()
            for number in range(new_tokens - 1):
                tokens = self._step(tokens, cache, context + number)
            self._wait()
            return {"seconds": time.perf_counter() - begun, "tokens": batch * (new_tokens - 1)}

    def memory(self) -> dict[str, Any]:
        import torch

        on_gpu = self.device.startswith("cuda")
        return {"process": peak_bytes(), "gpu": torch.cuda.max_memory_allocated(self.device) if on_gpu else None}

    def _step(self, tokens: Any, cache: Any, place: int) -> Any:
        """The likeliest next token of each answer, [batch, 1]."""
        import torch

        places = torch.full((3, tokens.shape[0], 1), place, device=self.device)
        language = getattr(self.model.model, "language_model", self.model.model)  # where it is, by version
        hidden = language(
            input_ids=tokens,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            cache_position=torch.tensor([place], device=self.device),
        )
        chosen = self.model.lm_head(hidden.last_hidden_state)[:, -1].argmax(-1, keepdim=True)
        chosen.tolist()  # as generation does, which looks whether it is the last
        return chosen

    def _inputs(self, path: str | None, text: str) -> Any:
        if path is None:
            return self.processor(text=[text], return_tensors="pt").to(self.device)
        from PIL import Image

        pictures = [Image.open(path).convert("RGB")]
        whole = f"<|vision_start|><|image_pad|><|vision_end|>{text}"
        return self.processor(text=[whole], images=pictures, return_tensors="pt").to(self.device)

    def _tower(self) -> Any:
        """The vision tower, which is in another place by version."""
        return self.model.visual if hasattr(self.model, "visual") else self.model.model.visual

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.synchronize()


class _Stopwatch:
    """The time a module takes while this is the context."""

    def __init__(self, module: Any, wait: Any) -> None:
        self.seconds = 0.0
        self._begun = 0.0
        self._module, self._wait = module, wait

    def __enter__(self) -> _Stopwatch:
        self._hooks = [
            self._module.register_forward_pre_hook(lambda *_: self._start()),
            self._module.register_forward_hook(lambda *_: self._stop()),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self) -> None:
        self._wait()
        self._begun = time.perf_counter()

    def _stop(self) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self._begun


if __name__ == "__main__":
    serve(Transformers())
