"""The wire between `qvl bench` and a side that it times: one JSON object a line, a question in and an answer out.

Also run by other Pythons, from 3.9 on, where qvl is not installed: the standard library alone.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def serve(side: Any) -> None:
    """Answer questions from standard input until it ends. {"do": NAME, ...} calls the method of that name.

    Answers are {"answer": {...}} or {"error": {"kinds": names of the exception's classes, the narrowest first, "text":
    its words}}. What libraries print on standard output goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                said = {"answer": getattr(side, request.pop("do"))(**request)}
            except Exception as error:
                traceback.print_exc()
                kinds = [kind.__name__ for kind in type(error).__mro__]
                said = {"error": {"kinds": kinds, "text": str(error)}}
            answers.write(json.dumps(said) + "\n")
            answers.flush()
    except KeyboardInterrupt:
        sys.stderr.flush()


def peak_bytes() -> int:
    """The most memory this process has had resident, mapped files included."""
    try:
        for line in Path("/proc/self/status").read_text(errors="replace").splitlines():
            if line.startswith("VmHWM:"):  # unlike getrusage's figure, without what the parent had at the fork
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def question(times: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
    """The answer to `question`, in the one form that all sides have.

    times: seconds of "preprocess", "vision" and "prefill" (None: not told apart), "first_token" and "answer", the time
    from the first token to the last. tokens: "prompt" as a number, "answer" as ids, or as a number where they are not
    known.
    """
    ids = tokens["answer"] if isinstance(tokens["answer"], list) else None
    later = (len(ids) if ids is not None else tokens["answer"]) - 1
    speed = later / times["answer"] if later > 0 and times["answer"] > 0 else None
    stages = {name: times[name] for name in ("preprocess", "vision", "prefill", "first_token")}
    return {**stages, "tokens_per_second": speed, "prompt_tokens": tokens["prompt"], "token_ids": ids}
