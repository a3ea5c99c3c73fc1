"""OpenVINO GenAI, for `qvl bench --against openvino`: run by a Python that has it, without qvl."""

from __future__ import annotations

import time
from typing import Any

from peer_wire import peak_bytes, question, serve


class OpenVino:
    """Answers with a folder that optimum-intel has exported. Its own figures tell the first token from the rest."""

    def hello(self, threads: int) -> dict[str, Any]:
        from importlib.metadata import version

        import openvino_genai  # noqa: F401 -- whether it is there, and what its import takes

        self.threads = threads
        versions = {name: version(name) for name in ("openvino-genai", "openvino")}
        # Its pipeline takes whole questions only.
        return {"versions": versions, "threads": threads, "contexts": False, "batches": False}

    def load(self, model: str, gpu: bool) -> dict[str, Any]:
        import openvino_genai

        begun = time.perf_counter()
        scheduling = openvino_genai.SchedulerConfig()
        # Else it remembers the keys and values of the last question, picture included, and asked again reads nothing.
        scheduling.enable_prefix_caching = False
        scheduling.max_num_batched_tokens = 4096  # not a prompt of 281 tokens in two
        settings = {} if gpu else {"INFERENCE_NUM_THREADS": self.threads}
        self.pipeline = openvino_genai.VLMPipeline(
            model, "GPU" if gpu else "CPU", scheduler_config=scheduling, **settings
        )
        return {"seconds": time.perf_counter() - begun}

    def question(self, path: str | None, text: str, new_tokens: int) -> dict[str, Any]:
        import numpy as np
        import openvino
        import openvino_genai

        settings = openvino_genai.GenerationConfig()
        settings.max_new_tokens = settings.min_new_tokens = new_tokens
        settings.do_sample, settings.ignore_eos = False, True
        if hasattr(settings, "apply_chat_template"):
            settings.apply_chat_template = False
        begun = time.perf_counter()
        given: dict[str, Any] = {}
        if path is not None:
            from PIL import Image

            given["images"] = [openvino.Tensor(np.asarray(Image.open(path).convert("RGB"))[None])]
        read = time.perf_counter() - begun
        found = self.pipeline.generate(text, generation_config=settings, **given)
        figures = found.perf_metrics
        first = read + figures.get_ttft().mean / 1000
        vision = None
        if hasattr(figures, "get_vision_encoder_duration"):  # in newer versions
            vision = figures.get_vision_encoder_duration().mean / 1000
        elif hasattr(figures, "get_prepare_embeddings_duration"):
            vision = figures.get_prepare_embeddings_duration().mean / 1000
        count = figures.get_num_generated_tokens()
        times = {
            "preprocess": read,
            "vision": vision,
            "prefill": None if vision is None else first - read - vision,
            "first_token": first,
            "answer": figures.get_tpot().mean / 1000 * (count - 1),
        }
        return question(times, {"prompt": figures.get_num_input_tokens(), "answer": count})

    def memory(self) -> dict[str, Any]:
        return {"process": peak_bytes(), "gpu": None}


if __name__ == "__main__":
    serve(OpenVino())
