"""What a run says of itself in `run.json`, and whether another is the same: on a resume, and between processes."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paddle

from qvl.errors import UsageError
from qvl.training.checkpoints import last_checkpoint
from qvl.training.examples import Prepared
from qvl.training.sums import together

if TYPE_CHECKING:  # which reads what an earlier sitting said, to lay out the same run
    from qvl.training.run import Run

DESCRIPTION = "run.json"
_LONG = 80  # characters of a value in a message
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
        "check_data": run.request.check_data,
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


def previous(output: Path) -> dict[str, Any] | None:
    """The description of the run that `--resume` goes on with; None where there is none with a checkpoint."""
    path = output / DESCRIPTION
    if last_checkpoint(output) is None or not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def difference(before: dict[str, Any], run: Run) -> str | None:
    """What of the run is not as `before`, the description of the one it is to go on with, says. None when all is.

    Its key with both values: "training.seed: 1 before, 2 now". Causes come before what follows from them.
    """
    now = json.loads(json.dumps(description(run)))
    # A description of an earlier qvl lacks what was no part of profiles then, and the samples that were used.
    was = before.get("profile", {})
    found = _differing("training", before.get("training"), now["training"])
    digests = (str(one.get("data_fingerprint"))[:12] for one in (before, now))
    found = found or _differing("data_fingerprint", *digests)
    for key in _RECIPE:
        found = found or _differing(key, was.get(key, now["profile"][key]), now["profile"][key])
    if found is None and before.get("used_samples", now["used_samples"]) != now["used_samples"]:
        found = _differing_samples(before, run)
    return found or _differing("steps", before.get("steps"), now["steps"])


def _differing(key: str, before: Any, now: Any) -> str | None:
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = ((f"{key}.{name}", before.get(name), now.get(name)) for name in {**before, **now})
        return next((found for pair in pairs if (found := _differing(*pair))), None)
    return None if before == now else f"{key}: {_shown(before)} before, {_shown(now)} now"


def _shown(value: Any) -> str:
    """A value of a description as one finds it in a profile; long ones, such as system prompts, by their beginning."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


def _differing_samples(before: dict[str, Any], run: Run) -> str:
    """How many samples are used, where they are not the same ones or not of the same lengths."""
    was, now = sum(one["used"] for one in before["data_report"]["sets"]), len(run.prepared.indices)
    text = f"used_samples: {was} before, {now} now"
    if was == now:
        text += ", but others or of other lengths"
    if run.request.check_data and not before.get("check_data", True):
        text += ", since --check-data, which was not given before, finds more that are bad"
    return text


def write_description(run: Run) -> None:
    if paddle.distributed.get_rank() == 0:
        path = run.request.output / DESCRIPTION
        partial = path.with_suffix(".partial")  # another process may be reading the old one
        partial.write_text(json.dumps(description(run), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)
