"""What of a profile cannot be learnt, whatever the data are. No Paddle here: `qvl doctor` asks where there is none."""

from __future__ import annotations

from qvl.errors import UsageError
from qvl.profile import Profile


def refuse_untrainable(profile: Profile) -> None:
    """Raise UsageError for a wish that no data and no machine could meet."""
    options, in_parts = profile.training, profile.tensor_parallel > 1
    if profile.quantize not in ("auto", "none"):
        raise UsageError(f"quantised weights cannot learn; leave out quantize={profile.quantize}")
    if profile.devices is not None:
        raise UsageError("the devices of training are those of its processes; leave out devices (see --devices)")
    if in_parts and options.eval_answers:
        raise UsageError("a model in parts cannot answer while it learns; set training.eval_answers=0")
    _check_sharding(profile)
    if profile.dtype == "float16":
        # The Trainer scales the loss, and beside float32 gradients neither scales them back nor sees which overflowed.
        raise UsageError("training is in bfloat16 or float32, not in float16; leave out dtype=float16")
    if options.eval_answers and not options.eval_split:
        raise UsageError("training.eval_answers needs samples that are held out: set training.eval_split")
    if options.batch_size % options.micro_batch_size:
        sizes = options.batch_size, options.micro_batch_size
        raise UsageError("batch_size {} is not a multiple of micro_batch_size {}".format(*sizes))


def _check_sharding(profile: Profile) -> None:
    """Refuse what does not go with matrices that are shared out."""
    options = profile.training
    if options.sharding not in ("stage2", "stage3"):
        return
    if profile.tensor_parallel > 1:
        raise UsageError(f"{options.sharding} does not go with tensor_parallel; take stage1, or leave out the parts")
    if options.eval_answers:
        raise UsageError(f"with {options.sharding} a model cannot answer while it learns; set training.eval_answers=0")
    if options.sharding == "stage3" and not options.recompute:
        raise UsageError("stage3 drops a layer's weights behind it; it needs training.recompute=true to run it again")
