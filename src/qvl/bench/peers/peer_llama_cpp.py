"""llama.cpp by llama-cpp-python, for `qvl bench --against llama.cpp`: run by a Python that has it, without qvl.

Pictures go through llama.cpp's own multimodal library, whose steps are called one by one here to be timed.
"""

from __future__ import annotations

import ctypes
import inspect
import time
from typing import Any

from peer_wire import peak_bytes, question, serve

_BATCH = 2048  # tokens that are run at a time, llama.cpp's own default


class LlamaCpp:
    """Answers with a GGUF file and the file of its vision tower."""

    def hello(self, threads: int) -> dict[str, Any]:
        import llama_cpp

        self.threads = threads
        # Decoding several answers at once is not in the interface that llama-cpp-python gives.
        versions = {"llama-cpp-python": llama_cpp.__version__}
        return {"versions": versions, "threads": threads, "contexts": True, "batches": False}

    def load(self, model: str, mmproj: str | None, room: int, gpu: bool) -> dict[str, Any]:
        """room: tokens that the context is to hold."""
        from llama_cpp import Llama

        begun = time.perf_counter()
        self.llama = Llama(
            model_path=model,
            n_ctx=room,
            n_batch=_BATCH,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            n_gpu_layers=-1 if gpu else 0,
            verbose=False,
        )
        self.tower = None
        if mmproj is not None:
            from llama_cpp import mtmd_cpp

            settings = mtmd_cpp.mtmd_context_params_default()
            settings.use_gpu, settings.print_timings, settings.n_threads = gpu, False, self.threads
            self.tower = mtmd_cpp.mtmd_init_from_file(mmproj.encode(), self.llama.model, settings)
            if not self.tower:
                raise ValueError(f"{mmproj} cannot be read as a vision tower")
        return {"seconds": time.perf_counter() - begun}

    def question(self, path: str | None, text: str, new_tokens: int) -> dict[str, Any]:
        if path is None:
            return self._text_only(text, new_tokens)
        from llama_cpp import mtmd_cpp

        self._forget()
        begun = time.perf_counter()
        picture = self._picture(path)
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        try:
            self._lay_out(chunks, picture, text)
            ready = time.perf_counter()
            vision, place, tokens = self._run(chunks)
            first = self._likeliest()
            came = time.perf_counter()
            answer = self._answer(first, place, new_tokens)
            done = time.perf_counter()
        finally:
            mtmd_cpp.mtmd_input_chunks_free(chunks)
            mtmd_cpp.mtmd_bitmap_free(picture)
        times = {
            "preprocess": ready - begun,
            "vision": vision,
            "prefill": came - ready - vision,
            "first_token": came - begun,
            "answer": done - came,
        }
        return question(times, {"prompt": tokens, "answer": answer})

    def decode(self, context: int, batch: int, new_tokens: int) -> dict[str, Any]:  # noqa: ARG002 -- always 1
        """Behind a prompt that is really run, since caches cannot be filled from outside; that is not timed."""
        if context + new_tokens > self.llama.n_ctx():
            return {"skipped": f"the context holds {self.llama.n_ctx()} tokens"}
        self._forget()
        self._feed([1000 + number % 1000 for number in range(context)], 0)
        first = self._likeliest()
        begun = time.perf_counter()
        self._answer(first, context, new_tokens)
        return {"seconds": time.perf_counter() - begun, "tokens": new_tokens - 1}

    def memory(self) -> dict[str, Any]:
        return {"process": peak_bytes(), "gpu": None}

    def _text_only(self, text: str, new_tokens: int) -> dict[str, Any]:
        self._forget()
        begun = time.perf_counter()
        ids = self.llama.tokenize(text.encode(), add_bos=False, special=True)
        ready = time.perf_counter()
        self._feed(ids, 0)
        first = self._likeliest()
        came = time.perf_counter()
        answer = self._answer(first, len(ids), new_tokens)
        times = {
            "preprocess": ready - begun,
            "vision": 0.0,
            "prefill": came - ready,
            "first_token": came - begun,
            "answer": time.perf_counter() - came,
        }
        return question(times, {"prompt": len(ids), "answer": answer})

    def _picture(self, path: str) -> Any:
        from llama_cpp import mtmd_cpp

        read = mtmd_cpp.mtmd_helper_bitmap_init_from_file
        # Since 0.3.36 it asks whether only a placeholder is wanted.
        pixels = (False,) if "placeholder" in inspect.signature(read).parameters else ()
        picture = read(self.tower, path.encode(), *pixels)
        if not picture:
            raise ValueError(f"{path} cannot be read as a picture")
        return picture

    def _lay_out(self, chunks: Any, picture: Any, text: str) -> None:
        from llama_cpp import mtmd_cpp

        marker = mtmd_cpp.mtmd_default_marker().decode()
        whole = f"{marker}{text}".encode()  # the marks around a picture are the library's own work
        given = mtmd_cpp.mtmd_input_text(text=whole, add_special=False, parse_special=True)
        if hasattr(given, "text_len"):  # since 0.3.36
            given.text_len = len(whole)
        pictures = (ctypes.c_void_p * 1)(picture)
        code = mtmd_cpp.mtmd_tokenize(self.tower, chunks, ctypes.byref(given), pictures, 1)
        if code != 0:
            raise ValueError(f"the prompt cannot be laid out (code {code})")

    def _run(self, chunks: Any) -> tuple[float, int, int]:
        """Run a prompt. Seconds of the vision tower, the next position, and the tokens of the prompt."""
        from llama_cpp import mtmd_cpp

        context, vision = self.llama.ctx, 0.0
        decode = mtmd_cpp.mtmd_helper_decode_image_chunk
        told: tuple[Any, ...] = ()
        if "callback" in inspect.signature(decode).parameters:  # since 0.3.36; nobody wants to be told
            told = (mtmd_cpp.mtmd_helper_post_decode_callback(), None)
        place = ctypes.c_int32(0)
        count = mtmd_cpp.mtmd_input_chunks_size(chunks)
        for number in range(count):
            chunk = mtmd_cpp.mtmd_input_chunks_get(chunks, number)
            begun = time.perf_counter()
            if mtmd_cpp.mtmd_input_chunk_get_type(chunk) == mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                self._check(mtmd_cpp.mtmd_encode_chunk(self.tower, chunk))
                vision += time.perf_counter() - begun
                features = mtmd_cpp.mtmd_get_output_embd(self.tower)
                self._check(
                    decode(self.tower, context, chunk, features, place.value, 0, _BATCH, ctypes.byref(place), *told)
                )
            else:
                last = number + 1 == count
                self._check(
                    mtmd_cpp.mtmd_helper_eval_chunk_single(
                        self.tower, context, chunk, place.value, 0, _BATCH, last, ctypes.byref(place)
                    )
                )
        return vision, place.value, mtmd_cpp.mtmd_helper_get_n_tokens(chunks)

    def _feed(self, ids: list[int], place: int) -> None:
        """Run tokens behind what the context holds."""
        import llama_cpp

        for first in range(0, len(ids), _BATCH):
            part = ids[first : first + _BATCH]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            try:
                batch.n_tokens = len(part)
                for number, token in enumerate(part):
                    batch.token[number], batch.pos[number] = token, place + first + number
                    batch.n_seq_id[number], batch.seq_id[number][0] = 1, 0
                    batch.logits[number] = number + 1 == len(part)
                self._check(llama_cpp.llama_decode(self.llama.ctx, batch))
            finally:
                llama_cpp.llama_batch_free(batch)

    def _answer(self, first: int, place: int, new_tokens: int) -> list[int]:
        tokens = [first]
        while len(tokens) < new_tokens:
            self._feed(tokens[-1:], place + len(tokens) - 1)
            tokens.append(self._likeliest())
        return tokens

    def _likeliest(self) -> int:
        """The likeliest token, but for those that end an answer."""
        import llama_cpp
        import numpy as np

        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.llama.ctx, -1), (self.llama.n_vocab(),))
        chosen = int(logits.argmax())
        ends = {self.llama.token_eos(), self.llama.token_bos()}
        if chosen in ends:
            allowed = logits.copy()
            allowed[[token for token in ends if token >= 0]] = -np.inf
            chosen = int(allowed.argmax())
        return chosen

    def _forget(self) -> None:
        import llama_cpp

        if hasattr(llama_cpp, "llama_memory_clear"):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.llama.ctx), True)
        else:
            llama_cpp.llama_kv_self_clear(self.llama.ctx)

    def _check(self, code: int) -> None:
        if code != 0:
            raise ValueError(f"llama.cpp gave code {code}")


if __name__ == "__main__":
    serve(LlamaCpp())
