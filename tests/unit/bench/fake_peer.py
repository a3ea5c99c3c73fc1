"""A peer that answers at once with figures of its own: stands in for transformers where a test has none.

Speaks the wire by hand, so that both ends of it are not the same code. Each request is noted in the file that
FAKE_PEER_LOG names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

NAME = os.environ.get("FAKE_PEER_NAME", "fake")
# One that ends in the middle of this request.
DIES_AT = os.environ.get("FAKE_PEER_DIES_AT", "")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    match request["do"]:
        case "hello":
            return {"versions": {NAME: "1.2.3"}, "threads": request["threads"], "contexts": True, "batches": False}
        case "load":
            return {"seconds": 0.5}
        case "question":
            stages = {"preprocess": 0.25, "vision": None, "prefill": None, "first_token": 2.0}
            ids = [7] * request["new_tokens"]
            return {**stages, "tokens_per_second": 10.0, "prompt_tokens": 90, "token_ids": ids}
        case "decode":
            if request["context"] > 1000:
                return {"skipped": "too long for it"}
            return {"seconds": 2.0, "tokens": request["new_tokens"] - 1}
        case "memory":
            return {"process": 3 << 30, "gpu": None}
    raise AssertionError(request)


def main() -> None:
    print("what a library says when it is imported", file=sys.stderr)
    for line in sys.stdin:
        request = json.loads(line)
        with Path(os.environ["FAKE_PEER_LOG"]).open("a", encoding="utf-8") as log:
            log.write(f"{NAME} {os.getpid()} {request['do']}\n")
        if request["do"] == DIES_AT:
            sys.exit("out of some resource")
        print(json.dumps({"answer": answer(request)}), flush=True)


if __name__ == "__main__":
    main()
