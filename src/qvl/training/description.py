"""What a run says of itself in `run.json`, and whether another is the same: on a resume, and between processes."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import paddle

from qvl.errors import UsageError
from qvl.training.examples import Prepared
from qvl.training.run import Run
from qvl.training.sums import together

DESCRIPTION = "run.json"
# What a resumed run may do otherwise than before: it changes no loss.
_MAY_CHANGE = ("workers", "save_steps", "save_total_limit", "cache_mb", "sharding", "eval_answers")
# Of the profile, beside its `training`, what decides on weights and samples.
_RECIPE = (
    *("model", "dtype", "min_pixels", "max_pixels", "video", "raw_pixels"),
    *("template", "add_vision_id", "system", "weight_layout"),
)


def description(run: Run) -> dict[str, Any]:
    training = asdict(run.options)
    for key in _MAY_CHANGE:
        del training[key]
    return {
        "profile": asdict(run.profile),
        "data": str(run.request.data),
        "data_fingerprint": run.dataset.fingerprint(),
        "data_report": run.prepared.report.to_json(),
        "used_samples": used_samples(run.prepared),
        "training": json.loads(json.dumps(training)),
        "steps": run.steps,
        "devices": run.arrangement.processes,
        "tensor_parallel": run.arrangement.parts,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("qvl", "paddlenlp", "numpy")}}
        | {"paddle": paddle.__version__},
    }


def used_samples(prepared: Prepared) -> str:
    """A digest of which samples are used and of their lengths, which the fingerprint of the data does not tell.

    A picture that is missing, where bad samples are skipped, changes the order of all others.
    """
    digest = hashlib.sha256()
    for column in (prepared.indices, prepared.tokens, prepared.supervised_tokens):
        digest.update(column.astype("<i8").tobytes())
    return digest.hexdigest()


def check_alike(run: Run) -> None:
    """See that all processes use the same samples, which each has looked at by itself. Called by all together.

    Raises UsageError: their updates would be made up of samples that do not belong together.
    """
    own, here = int(used_samples(run.prepared)[:12], 16), run.arrangement.process  # so many digits fit a float64
    found = together([float(own if process == here else 0) for process in range(run.arrangement.processes)])
    other = next((process for process, digest in enumerate(found) if digest != found[0]), None)
    if other is not None:
        raise UsageError(
            f"process {other} would use other samples than process 0; "
            "all of them have to find the same data, with every picture and clip"
        )


def changed(before: dict[str, Any], run: Run) -> str | None:
    """What of the run is not as `before`, the description of the one it is to go on with, says: its key, or None."""
    now = json.loads(json.dumps(description(run)))
    for key in ("data_fingerprint", "training", "steps"):
        if before.get(key) != now[key]:
            return key
    # A description of an earlier qvl lacks what was no part of profiles then, and the samples that were used.
    was = before.get("profile", {})
    for key in _RECIPE:
        if key in was and was[key] != now["profile"][key]:
            return key
    # Last, since most of the above makes it another one.
    return "used_samples" if before.get("used_samples", now["used_samples"]) != now["used_samples"] else None


def write_description(run: Run) -> None:
    if paddle.distributed.get_rank() == 0:
        path = run.request.output / DESCRIPTION
        partial = path.with_suffix(".partial")  # another process may be reading the old one
        partial.write_text(json.dumps(description(run), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
